"""Rows x seeds: the same budget and recipe for every method, seed by seed, spread over worker processes."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Preset, Report, silent
from ..data import ImageSet
from ..distill import Distillation, distill, needs_teacher
from ..models import Network, build
from ..select import baseline, kmeans_medoids, random_subset
from ..teachers import Representations, Teacher
from .rows import Cell, evaluate, evaluate_teacher

NO_PRETRAINING, RANDOM, KMEANS, KRR_ST, TEACHER = (
    "no pre-training", "random + teacher", "k-means + teacher", "KRR-ST", "teacher",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What every row shares: the data, the fixed teacher's representations, the settings."""

    data: ImageSet
    representations: Representations
    settings: Preset
    teacher: Teacher | None = None
    cache: str | os.PathLike[str] | None = None
    """The folder for representations of known views; None: none are kept."""

    def make(self, outputs: int) -> Network:
        """A student with a random start."""
        network = build(self.settings.student.model, self.data.channels, self.data.size, outputs)
        if self.settings.student.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.faster(self.settings.student.compiled, self.settings.student.training == "bf16")


def distil_seed(
    study: Study, seed: int, file: Path | None = None, report: Report = silent
) -> tuple[Distillation, Cell]:
    """KRR-ST under one seed: distilled, written to ``file``, pre-trained on and measured."""
    r, settings = study.representations, study.settings
    teacher = study.teacher if needs_teacher(settings.distill) else None
    run = distill(
        study.data,
        r.train,
        lambda: study.make(r.dimension),
        settings.distill,
        seed=seed,
        teacher=teacher,
        report=report,
        cache=study.cache,
    )
    cell = evaluate(run.result, study.data, r.test, study.make, settings, seed=seed, report=report)
    cell.method = KRR_ST
    run.result.metrics |= {"representation_error": cell.error, "probes": cell.probes}
    if file is not None:
        run.result.save(file)
    return run, cell


def other_rows(study: Study, seed: int, report: Report = silent) -> list[Cell]:
    """All that stands beside KRR-ST under one seed: no pre-training, the two selections, the teacher.

    The random selection is the one that KRR-ST starts from under that seed.
    """
    data, r, settings = study.data, study.representations, study.settings
    n, count = len(data.x_train), settings.distill.images
    kind = settings.evaluate.random_targets
    random_name = RANDOM if kind == "teacher" else "random + labels"
    rows = random_subset(n, count, seed)
    sets = [
        None,
        baseline(data, rows, r.train, method=random_name, seed=seed, targets=kind),
        baseline(data, kmeans_medoids(r.train, count, seed), r.train, method=KMEANS, seed=seed),
    ]
    cells = [evaluate(s, data, r.test, study.make, settings, seed=seed, report=report) for s in sets]
    if r.test is not None:
        cells.append(evaluate_teacher(r.train, r.test, data, settings, seed=seed, report=report))
    return cells


@dataclass(frozen=True)
class Task:
    """A call for a worker process: ``function(*arguments, report=...)``; all of it must be picklable."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


def run_tasks(tasks: Sequence[Task], workers: int, report: Report = silent) -> list[Any]:
    """Run the tasks in at most ``workers`` processes of one thread each; their results, in the order of the tasks.

    One thread a process, always: on small images more are no faster, and results then do not depend on ``workers``.
    Every event gets the key ``task`` and is handed to ``report`` in this process. The first error ends the others.
    One worker is this process: a signal that pauses or ends it finds all of the work.
    """
    if min(workers, len(tasks)) <= 1:
        return _here(tasks, report)
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_start, initargs=(events,))
    try:
        futures = [pool.submit(_call, task) for task in tasks]
        while True:
            done = all(f.done() for f in futures) or any(_failed(f) for f in futures)
            try:
                while True:
                    report(events.get(timeout=0.1))
            except queue.Empty:
                if not done:
                    continue
                for failed in filter(_failed, futures):
                    failed.result()  # raises
                return [f.result() for f in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _here(tasks: Sequence[Task], report: Report) -> list[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_named(task, report) for task in tasks]
    finally:
        torch.set_num_threads(threads)


def _named(task: Task, report: Report) -> Any:
    return task.function(*task.arguments, report=lambda event: report({**event, "task": task.name}))


def _failed(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


_events: Any = None  # the worker's end of the queue, set once a process


def _start(events: Any) -> None:
    global _events
    _events = events
    torch.set_num_threads(1)


def _call(task: Task) -> Any:
    return _named(task, _events.put)
