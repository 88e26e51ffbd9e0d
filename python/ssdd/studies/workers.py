"""Tasks distributed over processes of one thread each."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch

from ..config import Report, silent


@dataclass(frozen=True)
class Task:
    """A call for a worker process, ``function(*arguments, report=...)``. All of it must be picklable."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


def run_tasks(tasks: Sequence[Task], workers: int, report: Report = silent) -> list[Any]:
    """Run the tasks in at most ``workers`` processes of one thread each; return their results in the order of the
    tasks.

    Raises :class:`ChildProcessError` if a process ends before its task.

    Every process has one thread: on small images more threads are no faster, and results do not depend on ``workers``.
    Every event gets the key ``task`` and is passed to ``report`` in this process. The first error ends the other tasks.
    A single worker is this process, so a signal that pauses or ends it reaches all of the work.
    """
    if min(workers, len(tasks)) <= 1:
        return _run_here(tasks, report)
    # The workers are forks of one process that has imported this room, which takes seconds, and has run nothing. torch
    # imports _dynamo for the first optimizer.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__package__, "torch._dynamo"])
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
    except BrokenProcessPool:
        raise ChildProcessError(
            f"one of {min(workers, len(tasks))} worker processes ended before its task: it was killed, the memory did "
            'not suffice (try fewer workers), or a script calls this without `if __name__ == "__main__":`. What is '
            "finished is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _run_here(tasks: Sequence[Task], report: Report) -> list[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_run_task(task, report) for task in tasks]
    finally:
        torch.set_num_threads(threads)


def _run_task(task: Task, report: Report) -> Any:
    return task.function(*task.arguments, report=lambda event: report({**event, "task": task.name}))


def _failed(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


_events: Any = None  # the worker's end of the queue, set once per process


def _start(events: Any) -> None:
    global _events
    _events = events
    torch.set_num_threads(1)


def _call(task: Task) -> Any:
    return _run_task(task, _events.put)
