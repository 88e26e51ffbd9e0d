"""Tasks in worker processes: the same results as here, events under the task's name, errors that arrive."""

import pytest

from ssdd.config import InputError
from ssdd.selection import random_subset
from ssdd.studies import Task, run_tasks


def draw(n, count, seed, report):
    """A task: it reports, and returns what it drew."""
    report({"event": "drawn", "seed": seed})
    return random_subset(n, count, seed).tolist()


def test_results_come_in_the_order_of_the_tasks():
    """In one process; with several, a study's numbers are the test (test_fill.py)."""
    events = []
    found = run_tasks([Task(f"seed {s}", draw, (50, 4, s)) for s in range(3)], 1, events.append)
    assert found == [random_subset(50, 4, s).tolist() for s in range(3)]
    assert {(e["task"], e["seed"]) for e in events} == {(f"seed {s}", s) for s in range(3)}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_arrives(workers):
    with pytest.raises(InputError, match="between 1 and 50"):
        run_tasks([Task("good", draw, (50, 4, 0)), Task("bad", draw, (50, 51, 0))], workers)
