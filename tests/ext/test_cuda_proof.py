"""``make gpu`` on a machine without a GPU: its scripts on the CPU, and planted failures that cost one item each."""

import ast
import importlib
import json
import subprocess
import sys

import pytest
import torch

from ssdd_ext import bench
from ssdd_ext.bench import measure

# The packages on the GPU machine (see benchmarks/gpu/run.py), with pytest and this project
ALLOWED = {"torch", "numpy", "scipy", "pytest", "ssdd_ext", "pybind11"}
SCRIPTS = ("run", "journal", "record_tests", "smoke", "constants", "rows", "small_calls", "page", "switches")


@pytest.fixture
def gpu(root, monkeypatch):
    """gpu("run"): a module of benchmarks/gpu."""
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "gpu"))
    return importlib.import_module


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_gpu_tests_are_all_run_and_import_what_is_there(root, gpu):
    run = gpu("run")
    marked = {p for p in (root / "tests").rglob("test_*.py") if "pytest.mark.gpu\n" in p.read_text()}
    assert marked and marked <= {root / name for name in run.TESTS}
    scripts = [root / "benchmarks" / "gpu" / f"{name}.py" for name in SCRIPTS]
    tests = [*(root / name for name in run.TESTS), root / "tests/conftest.py", root / "tests/ext/conftest.py"]
    for path in (*scripts, *tests):
        assert set(imports(path)) <= ALLOWED | set(SCRIPTS) | sys.stdlib_module_names, path


def test_without_a_gpu_it_says_so(gpu, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: make gpu is the test")
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu("run").main(["--out", str(tmp_path)])


# A step with three items. The second one fails in the way that argv[1] names.
ITEMS = """
import os, sys, time
from pathlib import Path
from journal import Journal, run_items

def second():
    if sys.argv[1] == "hang":
        time.sleep(600)
    if sys.argv[1] == "crash":
        os.abort()
    assert sys.argv[1] != "wrong", "relative error 3"
    return {"text": "right"}

items = [("one", lambda: {"value": 1}), ("two", second), ("three", lambda: {"value": 3})]
sys.exit(0 if run_items(items, Journal(Path(os.environ["SSDD_JOURNAL"]))) else 1)
"""
# The same with tests.
TESTS = """
import os, time

def test_one(): pass

def test_two():
    if os.environ["PLANT"] == "hang":
        time.sleep(600)
    if os.environ["PLANT"] == "crash":
        os.abort()
    assert os.environ["PLANT"] != "wrong", "relative error 3"

def test_three(): pass
"""
OUTCOMES = {"hang": "hung", "crash": "crashed", "wrong": "failed", "none": "passed"}


@pytest.fixture
def proof(gpu, monkeypatch):
    """Run benchmarks/gpu/run.py with the steps proof.steps = [...] on a pretended GPU."""
    run = gpu("run")
    chip = {"gpu": "Chip (1)", "driver": "1", "torch": "2", "compute_capability": "9.0"}
    monkeypatch.setattr(run, "find_gpu", lambda: dict(chip))
    monkeypatch.setattr(run, "make_steps", lambda out, architecture: run.steps)
    return run


def command(*arguments):
    return (sys.executable, "-P", *map(str, arguments))


@pytest.mark.parametrize("plant", OUTCOMES)
def test_a_planted_failure_costs_one_item(proof, tmp_path, monkeypatch, plant):
    """A call or a test that hangs, crashes or is wrong: the ones before and after it are in the report."""
    monkeypatch.setenv("PLANT", plant)
    (tmp_path / "items.py").write_text(ITEMS)
    (tmp_path / "test_planted.py").write_text(TESTS)
    pytest_command = command(
        "-m", "pytest", "-v", "-p", "record_tests", "--rootdir", tmp_path, tmp_path / "test_planted.py"
    )
    limit = 2 if plant == "hang" else 60
    proof.steps = [
        proof.Step("rows", (command(tmp_path / "items.py", plant),), 60, item=limit),
        proof.Step("tests", (pytest_command,), 60, item=limit),
        proof.Step("last", (command("-c", "print('still here')"),), 60),
    ]
    out = tmp_path / "out"
    assert proof.main(["--out", str(out)]) == (plant != "none")
    steps = json.loads((out / "report.json").read_text())["steps"]
    for name in ("rows", "tests"):
        ended = {line["end"].split("::test_")[-1]: line for line in proof.Journal(out / f"{name}.jsonl").ended()}
        assert {n: line["outcome"] for n, line in ended.items()} == {
            "one": "passed",
            "two": OUTCOMES[plant],
            "three": "passed",
        }
        assert steps[name]["rc"] == (plant != "none")
        if plant != "none":
            [line] = steps[name]["not_passed"]
            reason = {"hang": "limit of 2 s", "crash": "status -6", "wrong": "relative error 3"}[plant]
            assert reason in line["reason"]
    assert steps["last"]["rc"] == 0
    assert "still here" in (out / "log.txt").read_text()


# Files of this process and its children are limited to 3,000 bytes, as on a full disk.
FULL_DISK = """
import resource, sys
sys.path[:0] = [sys.argv[1]]
import run
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
run.find_gpu = lambda: {"gpu": "chip", "driver": "1", "torch": "2", "compute_capability": "9.0"}
python = (sys.executable, "-P", "-c")
run.make_steps = lambda out, architecture: [
    run.Step("first", ((*python, "print('begun')"),), 60),
    run.Step("talks", ((*python, "print('x' * 2999); print('x' * 5000)"),), 60),
    run.Step("last", ((*python, "print('still here')"),), 60),
]
sys.exit(run.main(["--out", sys.argv[2]]))
"""


def test_a_full_disk_keeps_what_ran_before(root, tmp_path):
    arguments = ["-P", "-c", FULL_DISK, str(root / "benchmarks" / "gpu"), str(tmp_path)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "still here" in done.stdout and "the log ends here" in done.stderr
    assert "stays as it was" in done.stderr
    assert list(json.loads((tmp_path / "report.json").read_text())["steps"]) == ["first"]
    assert "begun" in (tmp_path / "log.txt").read_text()


# Files are limited to 20,000 bytes. The second item's result is larger.
FULL_DISK_AMONG_ITEMS = """
import resource, sys
sys.path[:0] = [sys.argv[1]]
import run
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
run.find_gpu = lambda: {"gpu": "chip", "driver": "1", "torch": "2", "compute_capability": "9.0"}
python = (sys.executable, "-P")
run.make_steps = lambda out, architecture: [
    run.Step("rows", ((*python, sys.argv[3]),), 60, item=30),
    run.Step("last", ((*python, "-c", "print('still here')"),), 60),
]
sys.exit(run.main(["--out", sys.argv[2]]))
"""
LARGE_ITEMS = """
import os, sys
from pathlib import Path
from journal import Journal, run_items

large = lambda: {"value": "x" * 30000, "text": "large"}
items = [("one", lambda: {"value": 1}), ("two", large), ("three", lambda: {"value": 3})]
sys.exit(0 if run_items(items, Journal(Path(os.environ["SSDD_JOURNAL"]))) else 1)
"""


def test_a_full_disk_among_items_keeps_those_before(root, tmp_path):
    script = tmp_path / "items.py"
    script.write_text(LARGE_ITEMS)
    arguments = ["-P", "-c", FULL_DISK_AMONG_ITEMS, str(root / "benchmarks" / "gpu"), str(tmp_path), str(script)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert done.returncode == 1 and steps["last"]["rc"] == 0, done.stderr
    assert steps["rows"]["items"] == {"passed": 1} and steps["rows"]["rc"] == 1
    assert len(steps["rows"]["runs"]) == 1 and "rows.jsonl" in steps["rows"]["unfinished"], "it was started again"
    log = (tmp_path / "log.txt").read_text()
    assert "one" in log and "large" in log and "three" in log, "what the journal lost is in the log"


def test_a_line_cut_short_does_not_spoil_the_next(gpu, tmp_path):
    journal = gpu("journal").Journal(tmp_path / "rows.jsonl")
    journal.path.write_text('{"begin": "one"}\n{"end": "one", "outc')
    journal.begin("two")
    assert journal.begun() == {"one", "two"} and journal.running()["begin"] == "two"


def test_nothing_runs_after_a_failed_build(proof, tmp_path):
    proof.steps = [
        proof.Step("build", (command("-c", "raise SystemExit(3)"),), 60),
        proof.Step("tests", (command("-c", ""),), 60),
    ]
    assert proof.main(["--out", str(tmp_path)]) == 1
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert list(steps) == ["build"] and steps["build"]["rc"] == 3


def test_only_keeps_the_other_steps_of_the_report(proof, tmp_path):
    proof.steps = [proof.Step(name, (command("-c", f"print('{name}')"),), 60) for name in ("one", "two")]
    assert proof.main(["--out", str(tmp_path)]) == 0
    assert proof.main(["--out", str(tmp_path), "--only", "two"]) == 0
    assert list(json.loads((tmp_path / "report.json").read_text())["steps"]) == ["one", "two"]
    with pytest.raises(SystemExit):
        proof.main(["--out", str(tmp_path), "--only", "three"])


def test_a_step_beyond_its_limit_ends_with_its_children(gpu, tmp_path):
    run = gpu("run")
    code = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    step = run.execute([sys.executable, "-c", code], 2.0, run.Log(tmp_path / "log.txt"))
    assert "limit of 2 s" in step["stopped"] and step["rc"] != 0 and step["tail"] == ["begun"] and step["seconds"] < 30
    assert (tmp_path / "log.txt").read_text().startswith("begun\n")


def test_every_command_is_there(gpu, root, tmp_path):
    steps = gpu("run").make_steps(tmp_path, "90")
    assert [s.name for s in steps] == [
        "build",
        "smoke",
        "constants",
        "rows",
        "tests",
        "memcheck",
        "racecheck",
        "distill",
    ]
    for step in steps:
        for one in step.commands:
            assert all((root / word).exists() for word in one if word.endswith(".py")), one


def test_the_small_calls_are_legal(gpu, capsys):
    gpu("small_calls").main(["--device", "cpu", "--thin"])
    assert "finite" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["smoke", "constants", "rows", "distill"])
def test_a_script_runs_on_the_cpu(gpu, tmp_path, name):
    assert gpu(name).main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    ended = gpu("journal").Journal(tmp_path / f"{name}.jsonl").ended()
    assert len(ended) >= 7 and {line["outcome"] for line in ended} == {"passed"}
    if name == "rows":
        for row in (row for line in ended for row in line["rows"]):
            assert row["seconds"] and max(row["error"].values()) < 1e-3, row


def test_a_wrong_result_is_a_failed_smoke_item(gpu, tmp_path):
    """The smoke step checks its reference: a call that is wrong by a hundredth fails."""
    smoke = gpu("smoke")
    leaves = smoke.inputs(((4, 3),), torch.float32, "cpu")
    with pytest.raises(AssertionError, match="relative errors"):
        smoke.check(lambda x: x * 1.01, lambda x: x, leaves)
    assert smoke.check(lambda x: x * 1, lambda x: x, leaves)["error"] < 1e-6


def test_the_committed_pages_are_what_the_reports_say(root, gpu):
    folders = sorted(p.parent for p in (root / "benchmarks" / "results").glob("gpu-*/report.json"))
    assert folders and gpu("page").main(["--check", *map(str, folders)]) == 0


@pytest.mark.gpu
def test_the_bench_measures_graphs_on_the_gpu():
    sizes = ["--s", "50", "--q", "60", "--d", "70", "--c", "3", "--repeats", "5", "--seconds", "5"]
    rows = {r["alternative"]: r for r in bench.main([*sizes, "--device", "cuda"])}
    assert rows["ssdd_ext"]["graph_seconds"]["median"] > 0 and rows["ssdd_ext"]["peak_bytes"] > 0


@pytest.mark.gpu
def test_a_captured_call_replays_on_new_inputs():
    x = torch.ones(5, device="cuda")
    replay = measure.capture(lambda: x * 2)
    x.fill_(4)
    assert torch.equal(replay(), torch.full((5,), 8.0, device="cuda"))
