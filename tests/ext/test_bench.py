"""The bench: its rows, its alternatives against float64, its tables. No test here depends on an absolute time."""

import dataclasses
import importlib.util
import itertools
import json
import subprocess
import sys

import pytest
import torch

from ssdd_ext import bench
from ssdd_ext.bench import ALTERNATIVES, Problem, measure
from ssdd_ext.bench.alternatives import FORWARD_ONLY, THIS, USUAL, why_not

TINY = ["--s", "12", "--q", "20", "--d", "30", "--c", "3", "--repeats", "2", "--seconds", "0"]
ALL = ("x_s", "y_s", "x_q", "y_q")
KEYS = {
    "alternative",
    "does",
    "problem",
    "plan",
    "seconds",
    "ratio",
    "error",
    "peak_bytes",
    "note",
    "versions",
    "cpu",
    "instruction_sets",
    "threads",
}


def load(root, name):
    """Import a script of benchmarks/, with its folder on the path as when it is run."""
    spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def short_samples():
    """Samples of a millisecond, and pauses of one: no test here depends on a time."""
    rest = measure._rest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SAMPLE_SECONDS", 1e-3)
        patch.setattr(measure, "_rest", lambda settle: rest(settle / 50))
        yield


@pytest.fixture(scope="module")
def scripts(root):
    names = ("timing", "report", "bench_krr", "bench_alternate", "bench_plan")
    yield {name: load(root, name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def rows():
    return bench.main([*TINY, "--no-memory"])


# --- rows -----------------------------------------------------------------------------------------------


def test_json_rows(tmp_path, capsys):
    file = tmp_path / "rows.json"
    rows = bench.main([*TINY, "--bias", "1", "--only", "ssdd_ext,scikit-learn", "--no-memory", "--json", str(file)])
    assert json.loads(file.read_text()) == json.loads(json.dumps(rows))
    assert [r["alternative"] for r in rows] == ["ssdd_ext", USUAL, "scikit-learn"]
    for row in rows:
        assert set(row) == KEYS
        assert {"ssdd_ext", "torch", "numpy", "scipy", "python"} <= set(row["versions"])
        assert row["problem"] | {"s": 12, "q": 20, "d": 30, "c": 3, "bias": 1.0} == row["problem"]
        assert row["threads"] == torch.get_num_threads() and row["cpu"] and row["instruction_sets"]
        if row["seconds"] is None:
            assert row["note"]
        else:
            assert 0 < row["seconds"]["lower"] <= row["seconds"]["median"] <= row["seconds"]["upper"]
            assert row["peak_bytes"] is None
            assert max(row["error"].values()) < 1e-4
            assert (row["ratio"] is None) == (row["alternative"] in FORWARD_ONLY)
    text = capsys.readouterr().out
    assert "S=12 Q=20 D=30 C=3" in text and all(r["alternative"] in text for r in rows)


def test_every_alternative_is_measured_or_says_why(rows):
    assert [r["alternative"] for r in rows] == list(ALTERNATIVES)
    for row in rows:
        assert (row["seconds"] is None) == (row["note"] is not None)
    assert [r["ratio"] for r in rows if r["alternative"] == USUAL] == [1.0]


def test_a_wrong_alternative_is_not_timed(monkeypatch):
    monkeypatch.setitem(ALTERNATIVES, "PyTorch, Cholesky", lambda p, t: 1.001 * ALTERNATIVES[USUAL](p, t))
    monkeypatch.setitem(ALTERNATIVES, "PyTorch, planned", lambda p, t: 1 / 0)
    rows = bench.measure_problem(Problem(5, 6, 7, 2), repeats=2, seconds=0, memory=False)
    notes = {r["alternative"]: r["note"] for r in rows if r["seconds"] is None}
    assert notes["PyTorch, Cholesky"] == "not timed: wrong beyond rounding"
    assert notes["PyTorch, planned"] == "ZeroDivisionError: division by zero"
    assert "wrong beyond rounding" in bench.table(rows) and "ZeroDivisionError" in bench.table(rows)


def test_forward_only(rows):
    got = bench.main([*TINY, "--no-memory", "--backward", "none"])
    timed = [r for r in got if r["seconds"]]
    assert all(r["does"] == "forward" and r["ratio"] is not None and set(r["error"]) == {"loss"} for r in timed)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--backward x_s,y", "'y' is none of x_s, y_s, x_q, y_q"),
        ("--s 0", "--s: expected at least 1, got 0"),
        ("--kernel rbf --bias 1", "--bias belongs to --kernel linear"),
        ("--lengthscale 2", "--lengthscale belongs to --kernel rbf"),
        ("--ridge -1", "Ridge.trace: expected a finite number >= 0, got -1.0"),
        ("--only numpy", "'numpy' is none of ssdd_ext, PyTorch usual"),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments.split())
    assert words in capsys.readouterr().err


# --- the alternatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, limit", [("float64", 1e-9), ("float32", 1e-4), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": 1.0},
        {"b": 3, "bias": 0.5, "ridge_kind": "mean_trace"},
        {"kernel": "rbf", "ridge_kind": "mean_trace"},
        {"b": 2, "kernel": "rbf", "lengthscale": 3.0, "ridge_kind": "absolute"},
        {"s": 40, "d": 9, "bias": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_alternatives_agree_with_float64(name, settings, dtype, limit):
    sizes = {"s": 12, "q": 20, "d": 30, "c": 3, "ridge": 1e-2}
    problem = Problem(**(sizes | settings), dtype=dtype, backward=ALL)
    if reason := why_not(name, problem):
        pytest.skip(f"{name.upper()} DID NOT RUN: {reason}")
    inputs = problem.inputs()
    error = measure.errors(ALTERNATIVES[name], problem, inputs, measure.truth(problem, inputs))
    assert set(error) == ({"loss"} if name in FORWARD_ONLY else {"loss", *ALL})
    assert max(error.values()) < limit


# --- measuring ------------------------------------------------------------------------------------------


def test_calls_take_turns():
    seen = []
    calls = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    samples = bench.interleaved(calls, repeats=3, seconds=60)
    assert {n: len(s) for n, s in samples.items()} == {"a": 3, "b": 3}
    order = "".join(n for n, _ in itertools.groupby(seen))
    assert order == "ab" * 4  # warm-up and three rounds
    assert len(bench.interleaved(calls, repeats=50, seconds=0)["a"]) == measure.MIN_ROUNDS


def test_peak_memory_sees_an_allocation_and_not_the_inputs():
    problem = Problem(700, 16, 20_000, 2, backward=("y_s",))
    square, inputs = 4 * 700**2, 4 * 716 * 20_000
    peak = measure.peak_apart(USUAL, problem, 1)
    if peak is None:
        pytest.skip("PEAK MEMORY DID NOT RUN: this system does not tell")
    assert 2 * square < peak < 20 * square < inputs


def test_module_runs_as_a_command_and_measures_memory(tmp_path):
    command = [sys.executable, "-P", "-m", "ssdd_ext.bench", *TINY]
    command += ["--only", USUAL.replace(",", ""), "--json", tmp_path / "rows.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert USUAL in done.stdout
    assert (row["peak_bytes"] is None) == ("is unknown" in done.stderr)
    assert (row["peak_bytes"] or 0) >= 0


# --- scripts and report ---------------------------------------------------------------------------------


def test_scripts_run(scripts, tmp_path):
    for name in ("bench_krr", "bench_alternate"):
        rows = scripts[name].main(["--quick", "--results", str(tmp_path)])
        assert rows and all(r["error"] is None or max(r["error"].values()) < 1 for r in rows)
    for row in scripts["bench_plan"].main(["--quick", "--results", str(tmp_path)]):
        assert row["error"] < 1e-3 and row["chosen"] in row["seconds"] and row["best"] in row["seconds"]
    assert list(tmp_path.iterdir()) == []  # --quick writes nothing


def test_report_round_trip(scripts, rows, tmp_path):
    report = scripts["report"]
    (tmp_path / "cpu_krr_x.json").write_text(json.dumps(rows))
    page = tmp_path / "benchmarks.md"
    page.write_text(f"above\n\n{report.BEGIN}\n{report.END}\n\nbelow\n")
    arguments = ["--results", str(tmp_path), "--page", str(page)]
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    assert report.main([*arguments, "--check"]) == 0
    text = page.read_text()
    assert text.startswith("above\n\n") and text.endswith("\n\nbelow\n")
    this = next(r for r in rows if r["alternative"] == THIS)
    assert f"**{this['ratio']:.2f}x**" in text and this["cpu"] in text and "| 12, 20, 30, 3 |" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 3


def test_the_page_is_what_the_results_say(scripts, root):
    report = scripts["report"]
    shown = report.between((root / "docs" / "benchmarks.md").read_text())
    assert shown == report.render(root / "benchmarks" / "results")


def test_committed_results_carry_error_and_machine(root):
    for path in (root / "benchmarks" / "results").glob("*_krr_*.json"):
        for row in json.loads(path.read_text()):
            assert set(row) >= KEYS, path.name
            assert row["seconds"] is None or row["error"] is not None, path.name
            assert dataclasses.asdict(Problem(**row["problem"])).keys() == row["problem"].keys()


def test_the_committed_pages_are_what_the_results_say(root, scripts):
    report = scripts["report"]
    assert report.main(["--check"]) == 0
    assert report.main(["--front", "--page", str(root / "README.md"), "--check"]) == 0
