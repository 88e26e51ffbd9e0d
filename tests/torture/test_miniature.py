"""A few cases of each part of the campaign that `make torture` runs, in this process."""

import importlib
import sys
from pathlib import Path

import pytest

CASES: dict[str, tuple[int, dict[str, int]]] = {
    "calls": (1, {"PROBLEMS": 6, "CALLS": 500, "MIDWAY": 4, "WRONG": 4}),
    "formula": (1, {"PROBLEMS": 12}),
    "readers": (2, {"FILES": 20}),
    "threads": (1, {"CALLS": 20}),
    "memory": (1, {"REPEATS": 60}),
}
"""How many cases of each part, and what is smaller than in the campaign. Kills are in tests/ssdd/cli/test_resume.py."""


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for name in ("run", *CASES):  # other folders of scripts have a "run" too
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in ("run", *CASES):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("part", CASES)
def test_a_few_cases(parts, part, monkeypatch, tmp_path):
    """The seeds are fixed, so that a change of the code is what makes a case fail; `make torture` draws new ones."""
    module, runner = parts(part), parts("run")
    cases, smaller = CASES[part]
    for name, value in smaller.items():
        monkeypatch.setattr(module, name, value)
    shared, counts = module.prepare(tmp_path), {}
    for seed in range(cases):
        line = runner.one_case(module, part, seed, shared, tmp_path)
        assert line["ok"], f"replay: python tests/torture/run.py --replay {part}:{seed}: {line}"
        counts.update(line["counts"])
    assert all(count >= 0 for count in counts.values()) and any(counts.values())


def test_a_failed_case_is_a_line_with_its_seed(parts, tmp_path):
    runner = parts("run")

    class Broken:
        @staticmethod
        def case(rng, shared, folder):
            assert rng.random() < 0, "broken"

    line = runner.one_case(Broken, "calls", 7, None, tmp_path)
    assert line["ok"] is False and line["seed"] == 7 and line["error"].startswith("AssertionError: broken")
    found = runner.summary("calls", [line, {"part": "calls", "seed": 8, "ok": True, "counts": {"x": 2}}])
    assert found["failed"] == 1 and found["replay"] == ["calls:7"] and found["counts"] == {"x": 2}
