"""Filling a study's table: what a row needs is made once, kept as a file, and measured set by set."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes

from ..artifact import DistilledSet, read_safetensors, wait_for_lock, write_atomically
from ..checkpoint import Checkpoints
from ..config import Event, InputError, Report, silent, versions
from ..data import ImageSet
from ..distillation import Distillation, Job, distill, total_variation
from ..evaluation import Cell, finetune, measure, pretrained, probes, why_no_probe
from ..models import Network, seeded, student
from ..selection import choose
from ..teachers import Representations, Teacher
from .baselines import baseline
from .plan import Plan, Row
from .store import SOURCE, Cells, describe_differences
from .workers import Task, run_tasks

TeacherPair = tuple[Teacher | None, Representations]
"""A teacher, if there is more than its representations of the source, and these."""


@dataclass(frozen=True)
class Study:
    """What all rows share: the images, the teachers, the cells, and the folder ``work`` of what is kept on the way."""

    data: ImageSet
    teachers: Mapping[Path | None, TeacherPair]
    """The teacher of each row: under None the study's, under a path the one of the rows that name it."""
    cells: Cells
    work: Path
    targets: Mapping[str, ImageSet] = field(default_factory=dict)
    cache: str | os.PathLike[str] | None = None
    """The folder for representations of known views; None: none are kept."""

    def network(self, row: Row, outputs: int) -> Network:
        """The row's student, with a random start."""
        return student(row.settings.student, self.data.channels, self.data.size, outputs)

    def file(self, row: Row, seed: int, kind: str) -> Path:
        """Where ``work`` keeps something of a row under a seed: "pairs", "network" or "snapshots"."""
        return self.work / f"{row.slug}.seed-{seed}.{kind}.safetensors"


Unit = tuple[Row, int, list[str]]
"""A row, a seed, and the sets whose cells are missing."""


def missing_cells(plan: Plan, names: Sequence[str], cells: Cells) -> list[Unit]:
    """The cells that are not there, seed 0 of all rows first. Raises :class:`InputError` if one is of other settings,
    data or teacher."""
    found = cells.read()
    for row, seed in plan.order():
        for name in names:
            if (row.name, seed, name) in found:
                cells.check(row, found[row.name, seed, name])
    return [(row, seed, [n for n in names if (row.name, seed, n) not in found]) for row, seed in plan.order()]


def fill_study(plan: Plan, study: Study, workers: int = 1, report: Report = silent) -> None:
    """Compute every cell that is not there, seed 0 of all rows first. Stopped at any moment, a call goes on from there.

    Reports ``{"event": "study", "row", "seed", "set", "done", "of", "seconds", "left"}`` per finished cell: ``left`` is
    an estimate of the seconds of computing that the rest needs on one core, None if nothing is known yet.
    """
    names = [SOURCE, *study.targets]
    todo = missing_cells(plan, names, study.cells)
    found, wanted = study.cells.read(), [(row.name, seed, name) for row, seed in plan.order() for name in names]
    done = [found[key] for key in wanted if key in found]

    def count_cells(event: Event) -> None:
        if event["event"] == "study-cell":
            done.append(event["cell"])
            cell = event["cell"]
            waiting = [(row, s, n) for row, s, missing in todo for n in missing if not _has(done, row, s, n)]
            report(
                {
                    "event": "study",
                    "row": cell["row"],
                    "seed": cell["seed"],
                    "set": cell["set"],
                    "done": len(done),
                    "of": len(wanted),
                    "seconds": sum(cell["cpu_seconds"].values()),
                    "left": remaining(done, waiting),
                }
            )
        else:
            report(event)

    tasks = [
        Task(f"{row.name}, seed {seed}", fill_unit, (study, row, seed, missing))
        for row, seed, missing in todo
        if missing
    ]
    run_tasks(tasks, workers, count_cells)


def _has(cells: Sequence[dict[str, Any]], row: Row, seed: int, name: str) -> bool:
    return any(c["row"] == row.name and c["seed"] == seed and c["set"] == name for c in cells)


def remaining(done: Sequence[Mapping[str, Any]], waiting: Sequence[tuple[Row, int, str]]) -> float | None:
    """Seconds of computing that the waiting cells need: what the same row took, else the mean of the rows known."""
    known: dict[tuple[str, str], list[float]] = {}
    for cell in done:
        known.setdefault((cell["row"], cell["set"]), []).append(sum(cell["cpu_seconds"].values()))
    if not known:
        return None
    means = {key: sum(values) / len(values) for key, values in known.items()}
    typical = {
        name: sum(values) / len(values)
        for name in {key[1] for key in means}
        if (values := [mean for key, mean in means.items() if key[1] == name])
    }
    left = sum(means.get((row.name, name), typical.get(name, math.nan)) for row, _, name in waiting)
    return None if math.isnan(left) else left


def fill_unit(study: Study, row: Row, seed: int, missing: Sequence[str], report: Report = silent) -> None:
    """One row under one seed: its pairs, its pre-trained network, then a cell per set of ``missing``.

    If another process is at this unit, it is waited for, and what it left is not computed again.
    """
    with wait_for_lock(study.work / f"{row.slug}.seed-{seed}.lock"):
        found = study.cells.read()
        for key in [(row.name, seed, name) for name in missing if (row.name, seed, name) in found]:
            study.cells.check(row, found[key])
            report({"event": "study-cell", "cell": found[key]})
        missing = [name for name in missing if (row.name, seed, name) not in found]
        if missing:
            _compute(study, row, seed, missing, report)


def _compute(study: Study, row: Row, seed: int, missing: Sequence[str], report: Report) -> None:
    _, representations = study.teachers[row.teacher]
    clock = _Clock()
    seconds: dict[str, float] = {}
    pairs = row_pairs(study, row, seed, report)
    took = clock.lap()
    seconds["pairs"] = max(took, (pairs.metrics.get("cpu_seconds") or 0) if pairs is not None else 0)
    network = None if row.source == "teacher" else row_network(study, row, seed, pairs, report)
    seconds["pretrain"] = clock.lap()
    for name in missing:
        data = study.data if name == SOURCE else study.targets[name]
        cell = Cell(row.name, seed)
        if network is None:
            measure_teacher(study, row, name, cell, report)
        else:
            predicts = pairs is not None and pairs.target_kind == "representation"
            wanted = representations.test if name == SOURCE and predicts else None
            measure(network, study.data.preprocessing, data, row.settings, cell, wanted, pairs is not None, report)
        seconds["measure"] = clock.lap()
        values = {"error": cell.error, "probes": cell.probes, "finetuned": cell.finetuned}
        if row.source == "krr-st" and pairs is not None:
            values["distillation"] = {
                key: pairs.metrics[key] for key in ("steps", "loss", "untrained_share", "mean_age", "cpu_seconds")
            } | {"total_variation": float(total_variation(pairs.images))}
        kept = study.cells.append(row, seed, name, values | {"cpu_seconds": dict(seconds), "versions": versions()})
        report({"event": "study-cell", "cell": kept})
        seconds = {"pairs": 0.0, "pretrain": 0.0}


def row_pairs(study: Study, row: Row, seed: int, report: Report = silent) -> DistilledSet | None:
    """What the row's network is pre-trained on, from its file if a call before this one finished it."""
    data, (teacher, representations) = study.data, study.teachers[row.teacher]
    train = representations.train
    if row.source in ("nothing", "teacher"):
        return None
    if row.source == "full set":
        return baseline(data, torch.arange(len(data.x_train)), train, method=row.source, seed=seed)
    if row.source == "recomputed":
        assert row.of is not None and teacher is not None
        pairs = row_pairs(study, row.of, seed, report)
        assert pairs is not None
        with torch.no_grad():
            targets = teacher(teacher.preprocessing.normalise(pairs.images))
        return replace(pairs, targets=targets, metrics={})
    file = study.file(row, seed, "pairs")
    with wait_for_lock(file.with_suffix(".lock")):  # a "recomputed" row may need them at the same time
        if not file.is_file():
            _make_pairs(study, row, seed, file, report)
    pairs = DistilledSet.load(file)
    _same(file, {"distill": pairs.config}, {"distill": row.relevant["distill"]})
    # As they lay in memory when they were made, whoever made them: another alignment or order rounds otherwise. Real
    # images have the channels of a pixel side by side; to torch those with one channel are contiguous too.
    order = torch.channels_last if row.selected or pairs.images.shape[1] == 1 else torch.contiguous_format
    images = torch.empty_like(pairs.images, memory_format=order).copy_(pairs.images)
    return replace(pairs, images=images, targets=pairs.targets.clone())


def _make_pairs(study: Study, row: Row, seed: int, file: Path, report: Report) -> None:
    """Distil or select, and write ``file``."""
    data, train = study.data, study.teachers[row.teacher][1].train
    begun = time.process_time()
    if row.source == "krr-st":
        pairs, resumed = _distil(study, row, seed, report)
    else:
        rows = choose(row.source, train, row.settings.distill.images, seed)
        pairs, resumed = baseline(data, rows, train, method=row.source, seed=seed, targets=row.targets), False
        pairs.config = row.relevant["distill"]
    pairs.metrics["cpu_seconds"] = None if resumed else round(time.process_time() - begun, 1)
    pairs.save(file)
    _checkpoints(study, row, seed).clear()


def _distil(study: Study, row: Row, seed: int, report: Report) -> tuple[DistilledSet, bool]:
    """The row's distilled set, and whether the run went on from a checkpoint; its snapshots are kept as a file."""
    teacher, representations = study.teachers[row.teacher]
    resumed = False

    def notice_resume(event: Event) -> None:
        nonlocal resumed
        resumed = resumed or event["event"] == "resume"
        report(event)

    checkpoints = _checkpoints(study, row, seed)
    checkpoints.report = notice_resume
    job = Job(
        study.data,
        representations.train,
        partial(study.network, row, representations.dimension),
        row.settings.distill,
        seed,
        teacher,
    )
    run = distill(job, report=notice_resume, checkpoints=checkpoints, cache=study.cache)
    write_snapshots(run, study.file(row, seed, "snapshots"))
    return run.result, resumed


def _checkpoints(study: Study, row: Row, seed: int) -> Checkpoints:
    return Checkpoints(study.work / f"{row.slug}.seed-{seed}.checkpoints")


def write_snapshots(run: Distillation, file: Path) -> None:
    """Keep the images of a run at some of its outer steps."""
    tensors = {f"{step:09d}": x.contiguous() for step, x in run.snapshots.items()}
    write_atomically(file, to_bytes(tensors, metadata={"ssdd": json.dumps({"format": "ssdd.snapshots"})}))


def read_snapshots(file: Path) -> dict[int, torch.Tensor]:
    """What :func:`write_snapshots` kept: outer step -> images, float32 [S, C, H, W] in pixels."""
    return {int(step): x for step, x in sorted(read_safetensors(file)[0].items())}


def row_network(study: Study, row: Row, seed: int, pairs: DistilledSet | None, report: Report = silent) -> Network:
    """The row's pre-trained network, from its file if a call before this one finished it."""
    make = partial(study.network, row)
    if pairs is None:
        return pretrained(None, make, row.settings, seed=seed)
    file = study.file(row, seed, "network")
    wanted: dict[str, Any] = {
        key: row.relevant[key] for key in ("student", "pretrain", "distill", "targets") if key in row.relevant
    }
    if file.is_file():
        tensors, meta = read_safetensors(file)
        _same(file, meta, wanted)
        network = seeded(lambda: make(pairs.targets.shape[1]), seed)
        network.load_state_dict(tensors)
        return network.eval()
    network = pretrained(pairs, make, row.settings, seed=seed, report=report)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_atomically(file, to_bytes(tensors, metadata={"ssdd": json.dumps(as_json(wanted))}))
    return network


def measure_teacher(study: Study, row: Row, name: str, cell: Cell, report: Report = silent) -> None:
    """The teacher's own representations, probed; fine-tuning it needs the network itself."""
    teacher, representations = study.teachers[row.teacher]
    data = study.data if name == SOURCE else study.targets[name]
    if name == SOURCE and representations.test is not None:
        cell.error, both = 0.0, (representations.train, representations.test)
    elif teacher is not None:
        both = teacher.represent(data.x_train), teacher.represent(data.x_test)
    else:
        raise InputError("teacher: a study that measures the teacher on targets needs the network, not a file")
    cell.probes = probes(both, data, row.settings, cell.seed, "features")
    if row.settings.finetune.share and teacher is not None and not why_no_probe(data):
        network = Network(teacher.module, both[0].shape[1], 1)
        config = row.settings.finetune
        cell.finetuned = finetune(network, teacher.preprocessing, data, config, seed=cell.seed, report=report)


def as_json(values: Any) -> Any:
    """Tuples as lists, as a reader of the file will find them."""
    return json.loads(json.dumps(values))


def _same(file: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = describe_differences(stored, wanted)
    if found:
        raise InputError(f"{file}: kept by a run with other settings ({'; '.join(found[:3])}); move it away")


class _Clock:
    """Processor seconds, which a paused or a shared machine does not change much."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def lap(self) -> float:
        now = time.process_time()
        self.last, passed = now, round(now - self.last, 1)
        return passed
