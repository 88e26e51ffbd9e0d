"""A pytest plugin that records the begin and the end of each test in a journal, so that a test that hangs or crashes is
named.

``SSDD_JOURNAL`` names the file. Tests with a begin in it are left out, so that a second run continues after the test
that ended the first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from journal import Journal

journal = Journal(Path(os.environ["SSDD_JOURNAL"]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    seen = journal.begun()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in seen])
    items[:] = [item for item in items if item.nodeid not in seen]


def pytest_runtest_logstart(nodeid: str) -> None:
    journal.begin(nodeid)


outcomes: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: Any) -> None:
    """Record the worst of a test's three phases, and the seconds of all."""
    entry = outcomes.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
    entry["seconds"] = round(entry["seconds"] + report.duration, 3)
    if report.outcome != "passed" and entry["outcome"] != "failed":
        entry["outcome"] = report.outcome
        entry["reason"] = report.longreprtext[-3000:] if report.failed else str(report.longrepr)[-300:]
    if report.when == "teardown":
        journal.end(report.nodeid, **outcomes.pop(report.nodeid))
