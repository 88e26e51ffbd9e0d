"""``make gpu`` and the GPU benchmark: what of them runs without a GPU, and on one the bench itself."""

import ast
import importlib.util
import json
import sys

import pytest
import torch

from ssdd_ext import bench
from ssdd_ext.bench import measure

# What the GPU machine's environment has (the head of benchmarks/gpu.py), pytest and this project
ALLOWED = {"torch", "numpy", "scipy", "pytest", "ssdd_ext", "gpu_rows"}


@pytest.fixture
def proof(root):
    spec = importlib.util.spec_from_file_location("gpu", root / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_gpu_tests_are_all_run_and_import_what_is_there(root, proof):
    marked = {p for p in (root / "tests").rglob("test_*.py") if "pytest.mark.gpu\n" in p.read_text()}
    assert marked and marked <= {root / name for name in proof.TESTS}
    for path in (*(root / name for name in proof.TESTS), root / "tests/conftest.py", root / "tests/ext/conftest.py"):
        assert set(imports(path)) <= ALLOWED | sys.stdlib_module_names, path


def test_without_a_gpu_it_says_so(proof, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: make gpu is the test")
    with pytest.raises(SystemExit, match="no CUDA device"):
        proof.main(["--out", str(tmp_path)])


XML = '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="{}"/></testsuites>'


@pytest.mark.parametrize("skipped, code", [(0, 0), (1, 1)])
def test_the_report_is_written_after_each_step_and_a_skip_fails(proof, tmp_path, monkeypatch, skipped, code):
    def steps(scratch, arguments):
        xml, rows = f"open(r'{scratch}/tests.xml', 'w').write('{XML.format(skipped)}')", f"{scratch}/cuda_all_x.json"
        return {
            "build": [sys.executable, "-c", "print('built')"],
            "tests": [sys.executable, "-c", xml],
            "memcheck": [sys.executable, "-c", f"print(open(r'{tmp_path}/gpu_chip-1.json').read())"],
            "bench": [sys.executable, "-c", f"open(r'{rows}', 'w').write('[1]')"],
        }

    monkeypatch.setattr(proof, "where", lambda: {"gpu": "Chip (1)", "driver": "1", "torch": "2"})
    monkeypatch.setattr(proof, "steps", steps)
    assert proof.main(["--out", str(tmp_path)]) == code
    report = json.loads((tmp_path / "gpu_chip-1.json").read_text())
    assert [s["rc"] for s in report["steps"].values()] == [0, 0, 0, 0] and report["rows"] == [1]
    assert report["steps"]["tests"]["tests"] == 3 and report["steps"]["tests"]["skipped"] == skipped
    # Written before the third step ran: it printed the report with the two before it.
    assert any('"tests"' in line for line in report["steps"]["memcheck"]["tail"])


def test_nothing_runs_after_a_failed_build(proof, tmp_path, monkeypatch):
    failing = {"build": [sys.executable, "-c", "raise SystemExit(3)"], "tests": [sys.executable, "-c", ""]}
    monkeypatch.setattr(proof, "where", lambda: {"gpu": "chip", "driver": "1", "torch": "2"})
    monkeypatch.setattr(proof, "steps", lambda *_: failing)
    assert proof.main(["--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu_chip.json").read_text())
    assert list(report["steps"]) == ["build"] and report["steps"]["build"]["rc"] == 3


def test_a_step_beyond_its_limit_ends_with_its_children(proof):
    code = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    step = proof.execute([sys.executable, "-c", code], 2.0, {})
    assert step["timed_out"] and step["rc"] != 0 and step["tail"] == ["begun"] and step["seconds"] < 30


def test_every_command_is_there(proof, root, tmp_path):
    steps = proof.steps(tmp_path, ["--seconds", "1"])
    assert list(steps) == list(proof.LIMITS) and steps["bench"][-2:] == ["--seconds", "1"]
    for command in steps.values():
        for word in command:
            if word.endswith(".py"):
                assert (root / word).exists(), word


def test_the_small_calls_are_legal(proof, capsys):
    proof.small_calls("cpu")
    assert "finite" in capsys.readouterr().out


def test_the_gpu_benchmark_runs_on_the_cpu(root, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import gpu_rows

    rows = gpu_rows.main(["--quick"])
    assert {r["alternative"] for r in rows} >= {"ssdd_ext", "PyTorch", "PyTorch, usual"}
    for row in rows:
        assert row["seconds"] and max(row["error"].values()) < 1e-3, row
    out = capsys.readouterr().out
    assert out.count("Cholesky 64x16") == 4 and "S=10" in out


@pytest.mark.gpu
def test_the_bench_measures_graphs_on_the_gpu():
    sizes = ["--s", "50", "--q", "60", "--d", "70", "--c", "3", "--repeats", "5", "--seconds", "5"]
    rows = {r["alternative"]: r for r in bench.main([*sizes, "--device", "cuda"])}
    assert rows["ssdd_ext"]["graph_seconds"]["median"] > 0 and rows["ssdd_ext"]["graph_ratio"] > 0
    assert rows["ssdd_ext"]["peak_bytes"] > 0 and rows["PyTorch, planned"]["graph_seconds"]


@pytest.mark.gpu
def test_a_captured_call_replays_on_new_inputs():
    x = torch.ones(5, device="cuda")
    replay = measure.captured(lambda: x * 2)
    x.fill_(4)
    assert torch.equal(replay(), torch.full((5,), 8.0, device="cuda"))
