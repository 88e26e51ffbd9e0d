"""Tasks in worker processes: the same results as in this process, events with the task's name, errors that arrive."""

import importlib
import multiprocessing
import os
import signal
import sys
import time

import pytest

from ssdd.config import InputError
from ssdd.selection import random_subset
from ssdd.studies import Task, run_tasks
from ssdd.studies import workers as pool

DRAWING = '''
import os
import signal
import time

from ssdd.selection import random_subset

def die(report):
    os._exit(9)

def sleep(seconds, report):
    report({"event": "asleep", "process": os.getpid(), "ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN})
    time.sleep(seconds)

def draw(n, count, seed, report):
    """A task: it reports, and returns what it drew."""
    report({"event": "drawn", "seed": seed})
    return random_subset(n, count, seed).tolist()
'''


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """The task, in a module that worker processes can import: they get this process's sys.path."""
    (tmp_path / "drawing.py").write_text(DRAWING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "drawing", raising=False)
    return importlib.import_module("drawing").draw


def test_results_come_in_the_order_of_the_tasks(draw):
    """In one process; test_fill.py tests the numbers of a study with several."""
    events = []
    found = run_tasks([Task(f"seed {s}", draw, (50, 4, s)) for s in range(3)], 1, events.append)
    assert found == [random_subset(50, 4, s).tolist() for s in range(3)]
    assert {(e["task"], e["seed"]) for e in events} == {(f"seed {s}", s) for s in range(3)}


class Fork(multiprocessing.context.ForkProcess, pool.Worker):
    _after_fork = staticmethod(multiprocessing.process.BaseProcess._after_fork)


@pytest.fixture
def forks(monkeypatch):
    """Make workers forks of this process, which need no imports. Those of studies (test_fill.py) are started afresh."""
    monkeypatch.setattr(pool, "Worker", Fork)
    monkeypatch.setattr(pool.Workers, "_name", "fork")


FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@FORKS
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_arrives(draw, forks, workers):
    with pytest.raises(InputError, match="between 1 and 50"):
        run_tasks([Task("good", draw, (50, 4, 0)), Task("bad", draw, (50, 51, 0))], workers)


@FORKS
def test_a_worker_that_dies_is_an_error_in_words(draw, forks):
    die = importlib.import_module("drawing").die
    with pytest.raises(ChildProcessError, match="one of 2 worker processes ended before its task.*What is finished is"):
        run_tasks([Task("dies", die), Task("dies too", die)], 2)


def work(events):
    """A worker that is busy for a minute."""
    pool._start(events)
    events.put(os.getpid())
    time.sleep(60)


def begin_worker(context, events):
    """The process of a study: it has one worker."""
    worker = context.Process(target=work, args=(events,))
    worker.start()
    worker.join()


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@FORKS
def test_workers_end_when_their_study_is_killed():
    """Forks, as they need no imports."""
    context = multiprocessing.get_context("fork")
    events = context.Queue()
    study = context.Process(target=begin_worker, args=(context, events))
    study.start()
    worker = events.get(timeout=60)
    os.kill(study.pid, signal.SIGKILL)
    study.join()
    late = time.monotonic() + 30
    while is_alive(worker) and time.monotonic() < late:
        time.sleep(0.02)
    assert not is_alive(worker)


FIRST = """
import os, signal, sys

if "spawn_main" in " ".join(sys.orig_argv):  # a worker, not the tracker of multiprocessing
    with open({file!r}, "a") as file:
        print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []), file=file)
"""


def test_ctrl_c_ends_the_workers_at_once_and_does_not_reach_them(draw, tmp_path, monkeypatch):
    """A terminal sends Ctrl-C to all processes. Workers must not print tracebacks of it, not even while they import."""
    blocked, asleep = tmp_path / "blocked", []
    (tmp_path / "sitecustomize.py").write_text(FIRST.format(file=str(blocked)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    sleep = importlib.import_module("drawing").sleep

    def interrupt(event):
        asleep.append(event)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([Task("one", sleep, (600,)), Task("two", sleep, (600,))], 2, interrupt)
    assert asleep[0]["ignored"] and blocked.read_text().splitlines() == ["True", "True"]
    with pytest.raises(ProcessLookupError):
        os.kill(asleep[0]["process"], 0)
