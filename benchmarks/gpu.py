"""The GPU proof in one command, ``make gpu``: build for the GPU at hand, its tests, compute-sanitizer, the benchmarks.

Every step has a time limit, and a step that fails does not keep the later ones from running, unless the build itself
failed. What is known is written after each step to ``gpu_<name of the GPU>.json``: GPU, driver, CUDA and torch
versions, of each step its command, exit status, seconds and last lines, the counts of the tests, the benchmark's rows.
Needs no network, and in this Python's environment torch, numpy, scipy, pytest, cmake, ninja, pybind11 and
scikit-build-core only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
TESTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "ext").glob("test_cuda*.py"))
# Seconds; together with what is around the steps below nine minutes.
LIMITS = {"build": 200, "tests": 150, "memcheck": 60, "racecheck": 75, "bench": 150}
TOTAL = 525

Report = dict[str, Any]


def execute(command: Sequence[str], seconds: float, environment: dict[str, str]) -> Report:
    """Run to the end or to the limit, with everything it started; its output also appears here."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    timed_out = False
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    print(output, flush=True)
    return {
        "command": " ".join(command), "rc": process.returncode, "seconds": round(time.monotonic() - begin, 1),
        "timed_out": timed_out, "tail": output.splitlines()[-40:],
    }  # fmt: skip


def query(*command: str) -> str:
    tool = shutil.which(command[0])
    if not tool:
        return f"no {command[0]} here"
    return subprocess.run([tool, *command[1:]], capture_output=True, text=True).stdout.strip()


def where() -> Report:
    """GPU, driver, CUDA and torch; exits where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("make gpu: torch sees no CUDA device here")
    release = re.search(r"release ([\d.]+)", query("nvcc", "--version"))
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": query("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "nvcc": release.group(1) if release else None, "torch": torch.__version__, "torch_cuda": torch.version.cuda,
        "python": sys.version.split()[0], "cpus": os.cpu_count(),
        "commit": query("git", "-C", str(ROOT), "rev-parse", "HEAD"),
    }  # fmt: skip


def counts(junit: Path) -> dict[str, int]:
    """Of pytest's report: tests, failures, errors, skipped."""
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    if junit.exists():
        for suite in ElementTree.parse(junit).getroot().iter("testsuite"):
            for name in total:
                total[name] += int(suite.get(name, 0))
    return total


def small_calls(device: str) -> None:
    """What runs under compute-sanitizer: every rung and plan at small sizes; a NaN anywhere is an error."""
    from dataclasses import replace
    from itertools import product

    import torch

    import ssdd_ext
    from ssdd_ext import RBF, Linear, Ridge, plan

    def call(s: int, d: int, kernel: Any, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(s)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        sizes = ((s, d, dtype), (s, 5, wide), (70, d, dtype), (70, 5, wide))
        inputs = [torch.randn(2, n, m, generator=generator).to(device, kind).requires_grad_() for n, m, kind in sizes]
        loss = ssdd_ext.krr_mse(*inputs, kernel=kernel, ridge=Ridge.trace(1e-2), on_failure="jitter", backend="native")
        for value in (loss, *torch.autograd.grad(loss.sum(), inputs)):
            assert torch.isfinite(value).all(), (s, d, kernel, dtype)

    rungs = [(10, torch.float32), (70, torch.float32), (300, torch.float32), (70, torch.float64)]
    if device == "cuda":
        rungs.append((40, torch.bfloat16))  # the CPU's core reads no 16-bit features
    for s, dtype in rungs:
        call(s, 33, RBF(8.0), dtype)
        for forward, backward in product(("dense", "low_rank"), ("dense", "low_rank", "mixed")):
            with plan.force(forward=forward, backward=backward):
                call(s, 333, Linear(1.0, 1.0), dtype)
        call(s, 9, Linear(1.0, 1.0), dtype)  # fewer features than points: the primal
    choose = plan.choose
    plan.choose = lambda *a: replace(choose(*a), fused_gram=device == "cuda")  # type: ignore[assignment]
    try:
        for s in (20, 150):
            call(s, 200, Linear(1.0, 1.0), torch.float32)
            call(s, 200, RBF(20.0), torch.float32)
    finally:
        plan.choose = choose
    print("every call returned finite numbers")


def steps(scratch: Path, arguments: Sequence[str]) -> dict[str, list[str]]:
    """Name and command, in their order."""
    python, here = [sys.executable, "-P"], str(Path(__file__).resolve())
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--kernel-regex", "kns=_ZN4ssdd", "--print-limit", "20"]
    install = ["-m", "pip", "--disable-pip-version-check", "install", ".", "--no-build-isolation", "--no-deps"]
    settings = ["--force-reinstall", "--config-settings=cmake.define.CUDA=ON"]
    settings += ["--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=native"]
    rows = str(ROOT / "benchmarks" / "gpu_rows.py")
    bench = [rows, "--device", "cuda", "--results", str(scratch), "--repeats", "12"]
    return {
        "build": [sys.executable, *install, *settings],
        "tests": [*python, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={scratch / 'tests.xml'}", *TESTS],
        "memcheck": [*sanitizer, "--tool", "memcheck", *python, here, "--small-calls", "cuda"],
        "racecheck": [*sanitizer, "--tool", "racecheck", *python, here, "--small-calls", "cuda"],
        "bench": [sys.executable, *bench, *arguments],
    }


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=RESULTS, help="folder for the report")
    p.add_argument(
        "--small-calls", choices=("cpu", "cuda"), help="only what runs under compute-sanitizer, on this device"
    )
    a, rest = p.parse_known_args(argv)  # the rest goes to gpu_rows.py
    if a.small_calls:
        small_calls(a.small_calls)
        return 0
    begin, report = time.monotonic(), where()
    report |= {"steps": {}, "rows": []}
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"gpu_{re.sub(r'[^a-z0-9]+', '-', report['gpu'].lower()).strip('-')}.json"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name, command in steps(scratch, rest).items():
            left = min(LIMITS[name], TOTAL - (time.monotonic() - begin))
            print(f"== {name} (at most {left:.0f} s)", flush=True)
            if shutil.which(command[0]) is None:
                step = {"command": command[0], "rc": 127, "seconds": 0, "timed_out": False, "tail": ["not found"]}
            else:
                step = execute(
                    command, left, {"SSDD_REQUIRE_GPU": "1", "PYTHONSAFEPATH": "" if name == "bench" else "1"}
                )
            if name == "tests":
                step |= counts(scratch / "tests.xml")
            report["steps"][name] = step
            for result in scratch.glob("cuda_all_*.json"):
                report["rows"] = json.loads(result.read_text())
            path.with_suffix(".part").write_text(json.dumps(report, indent=1) + "\n")
            path.with_suffix(".part").replace(path)
            if name == "build" and step["rc"] != 0:
                break
    bad = [n for n, step in report["steps"].items() if step["rc"] != 0 or step.get("skipped") or step.get("tests") == 0]
    took = time.monotonic() - begin
    for name, step in report["steps"].items():
        print(f"{'FAILED' if name in bad else 'passed':8}{name:12}{step['seconds']:6.0f} s")
    print(f"{report['gpu']}, driver {report['driver']}, torch {report['torch']}: {took:.0f} s; wrote {path}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
