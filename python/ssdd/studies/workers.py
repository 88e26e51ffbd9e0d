"""Tasks distributed over processes of one thread each."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import queue
import signal
import threading
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


class Worker(multiprocessing.context.SpawnProcess):
    """A process that Ctrl-C does not reach. The process that started it ends it."""

    def start(self) -> None:
        """Start the process with SIGINT blocked, so that it cannot be interrupted while it imports."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers(multiprocessing.context.SpawnContext):
    """The worker processes of one call, each started afresh."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Worker] = []

    def Process(self, *arguments: Any, **named: Any) -> Worker:  # type: ignore[override]  # noqa: N802
        """Return a new process, and remember it."""
        self.started.append(Worker(*arguments, **named))
        return self.started[-1]

    def kill(self) -> None:
        """End all processes at once. A kill at any moment loses nothing that is finished."""
        for process in self.started:
            process.kill()


def run_tasks(tasks: Sequence[Task], workers: int, report: Report = silent) -> list[Any]:
    """Run the tasks in at most ``workers`` processes of one thread each; return their results in the order of the
    tasks.

    Raises :class:`ChildProcessError` if a process ends before its task.

    Every process has one thread: on small images more threads are no faster, and results do not depend on ``workers``.
    Every event gets the key ``task`` and is passed to ``report`` in this process. The first error ends the other tasks.
    The workers end when this process does, however it ends, and KeyboardInterrupt ends them at once.
    A single worker is this process, so a signal that pauses or ends it reaches all of the work.
    """
    if min(workers, len(tasks)) <= 1:
        return _run_here(tasks, report)
    context = Workers()
    events: Any = context.Queue()  # this also starts multiprocessing's tracker, whose start unblocks SIGINT
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
    except KeyboardInterrupt:
        context.kill()
        raise
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it was blocked so far
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended, even by a signal that cannot be caught."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(task: Task) -> Any:
    return _run_task(task, _events.put)
