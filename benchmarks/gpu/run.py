"""The GPU proof in one command, ``make gpu``: build for the GPU at hand, smoke test, benchmarks, tests, sanitizers.

Steps, in this order (``--only build,smoke,rows`` picks some):

- ``build``: the CUDA kernels for the GPU at hand, in place. Skipped if the sources and the compiler have not changed.
- ``smoke``: every public call once, with its error against float64.
- ``constants``: the assumptions of the cost model, measured: ``gpu_constants.json``.
- ``rows``: loss and gradients compared with PyTorch, Cholesky factorisations, each with the times of its kernels.
- ``tests``: the tests marked ``gpu``, one process per file; a skipped test is a failure.
- ``memcheck``, ``racecheck``: compute-sanitizer on small calls of every kernel.
- ``distill``: an outer step of the distillation, the published loop and ours, one row per lever.

No finished result is lost. All output is copied to ``log.txt`` in the report's folder immediately. Items (a call, a
row, a test) are recorded one by one in ``<step>.jsonl``. An item that hangs is stopped and recorded, and its step
continues with the next one. ``report.json`` is rewritten after each step. Later steps run
even if one fails.

Needs torch, numpy, scipy, pytest, cmake, ninja and pybind11 in this Python's environment, for ``distill`` also the
packages of the extra of that name, and no network.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # -P keeps the script's folder off the path

from journal import Journal  # noqa: E402

ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "gpu"
TESTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "ext").glob("test_cuda*.py"))
TOTAL = 400.0  # seconds of all steps together
RESTARTS = 8  # of one step, each after an item that hung or crashed

Report = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A command. ``limit``: seconds of the whole step; ``item``: seconds of one of its items, 0 if it has none."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit: float
    item: float = 0.0


class Log:
    """Standard output and a file. On a full disk only the file's lines are lost."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.broken = False

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        if self.path is None or self.broken:
            return
        try:
            with self.path.open("a") as file:
                file.write(text)
        except OSError as failure:
            self.broken = True
            print(f"{self.path}: {failure}; the log ends here", file=sys.stderr, flush=True)


def execute(
    command: Sequence[str],
    seconds: float,
    log: Log,
    environment: dict[str, str] | None = None,
    journal: Journal | None = None,
    item: float = 0.0,
) -> Report:
    """Run ``command``, its output copied to ``log`` line by line, until it ends or is stopped with its children.

    Args:
        seconds: limit of the whole run.
        journal, item: if an item of ``journal`` has been running for more than ``item`` seconds, the run is stopped.

    Returns:
        the command, its exit status, seconds, last lines, and ``stopped``: why it was stopped, or "".
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        text=True,
        errors="replace",
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=1,
    )
    tail: list[str] = []

    def copy(pipe: IO[str]) -> None:
        for line in pipe:
            log.write(line)
            tail.append(line.rstrip("\n"))
            del tail[:-40]

    assert process.stdout is not None
    reader = threading.Thread(target=copy, args=(process.stdout,), daemon=True)
    reader.start()
    stopped = ""
    while process.poll() is None:
        time.sleep(0.1)
        if time.monotonic() - begin > seconds:
            stopped = f"the step's limit of {seconds:.0f} s"
        running = journal.running() if item and journal is not None else None
        if not stopped and running is not None and time.time() - running["at"] > item:
            stopped = f"{running['begin']}: an item's limit of {item:.0f} s"
        if stopped:
            kill(process.pid)
            process.wait()
    kill(process.pid)  # remaining children of a process hold the pipe and the GPU
    reader.join(5)
    if stopped:
        log.write(f"STOPPED by {stopped}\n")
    return {
        "command": " ".join(command).replace(str(ROOT), "."),
        "rc": process.returncode,
        "seconds": round(time.monotonic() - begin, 1),
        "stopped": stopped,
        "tail": list(tail),
    }


def kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def run_step(step: Step, out: Path, seconds: float, log: Log) -> Report:
    """Run a step's commands one after the other. A command with items is started again after an item that ended it."""
    journal = Journal(out / f"{step.name}.jsonl") if step.item else None
    environment = {
        "SSDD_REQUIRE_GPU": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "python", HERE, HERE.parent))),
    }
    if journal is not None:
        environment["SSDD_JOURNAL"] = str(journal.path)
    begin = time.monotonic()
    result: Report = {"runs": [], "rc": 0}
    for command in step.commands:
        for _ in range(RESTARTS):
            left = seconds - (time.monotonic() - begin)
            if left < 1:
                result |= {"rc": result["rc"] or 1, "unfinished": "no time was left"}
                break
            if shutil.which(command[0]) is None:
                run: Report = {"command": command[0], "rc": 127, "seconds": 0, "stopped": "", "tail": ["not found"]}
            else:
                run = execute(command, left, log, environment, journal, step.item)
            result["runs"].append(run)
            running = journal.running() if journal is not None else None
            if journal is not None and running is not None:
                outcome = "hung" if run["stopped"] else "crashed"
                reason = run["stopped"] or f"the process ended with status {run['rc']}"
                journal.end(running["begin"], outcome, reason="\n".join([reason, *run["tail"][-15:]]))
                if journal.running() == running:  # a full disk: started again, it would lose all results again
                    unwritten = f"{step.name}.jsonl cannot be written; log.txt and the output have what ran after it"
                    result |= {"rc": 1, "unfinished": unwritten}
                    break
            if running is None:
                result["rc"] = result["rc"] or abs(run["rc"])
                break
            result["rc"] = 1
    result["seconds"] = round(time.monotonic() - begin, 1)
    if journal is not None:
        ended = journal.ended()
        result["items"] = {}
        for line in ended:
            result["items"][line["outcome"]] = result["items"].get(line["outcome"], 0) + 1
        result["not_passed"] = [line for line in ended if line["outcome"] != "passed"]
        if not ended or result["not_passed"]:
            result["rc"] = result["rc"] or 1
    return result


def query(*command: str) -> str:
    tool = shutil.which(command[0])
    if not tool:
        return f"no {command[0]} here"
    return subprocess.run([tool, *command[1:]], capture_output=True, text=True).stdout.strip()


def find_gpu() -> Report:
    """Return GPU, driver, CUDA and torch; exit if there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("make gpu: torch sees no CUDA device here")
    release = re.search(r"release ([\d.]+)", query("nvcc", "--version"))
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": query("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "nvcc": release.group(1) if release else None,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "commit": query("git", "-C", str(ROOT), "rev-parse", "HEAD"),
    }


def fingerprint(architecture: str) -> str:
    """Return a hash of everything that the built module depends on: sources, this Python, the architecture and the
    compiler."""
    digest = hashlib.sha256()
    files = [ROOT / "CMakeLists.txt", *sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]
    for path in files:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    digest.update(f"{sysconfig.get_config_var('EXT_SUFFIX')} {architecture}".encode())
    return digest.hexdigest()


def build(architecture: str, jobs: int) -> None:
    """Build ``_C`` with the CUDA kernels for one architecture such as "90", in place, unless it exists already."""
    module = ROOT / "ssdd_ext" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    stamp = BUILD / "stamp.txt"
    expected = fingerprint(architecture)
    if module.exists() and stamp.exists() and stamp.read_text() == expected:
        print(f"reused {module.name}: nothing it depends on has changed")
        return
    import pybind11

    stamp.unlink(missing_ok=True)
    settings = ["-DCUDA=ON", "-DSSDD_INPLACE=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    settings += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *settings], check=True)
    subprocess.run(["cmake", "--build", str(BUILD), "-j", str(jobs)], check=True)
    stamp.write_text(expected)


def make_steps(out: Path, architecture: str) -> list[Step]:
    """Return the steps in their order."""
    python = (sys.executable, "-P")
    build_command = (*python, str(HERE / "run.py"), "--build", architecture)
    tests = tuple((*python, "-m", "pytest", "-v", "-m", "gpu", "-p", "record_tests", file) for file in TESTS)
    # Ignore errors of the driver's interface that torch causes and handles.
    sanitizer = (
        "compute-sanitizer",
        "--error-exitcode",
        "9",
        "--kernel-name",
        "kns=_ZN4ssdd",
        "--print-limit",
        "20",
        "--report-api-errors",
        "no",
    )
    small = (*python, str(HERE / "small_calls.py"), "--device", "cuda")

    def script(name: str) -> tuple[tuple[str, ...], ...]:
        return ((*python, str(HERE / f"{name}.py"), "--device", "cuda", "--out", str(out)),)

    return [
        Step("build", (build_command,), 180),
        Step("smoke", script("smoke"), 40, item=15),
        Step("constants", script("constants"), 30, item=15),
        Step("rows", script("rows"), 100, item=40),
        Step("tests", tests, 130, item=60),
        Step("memcheck", ((*sanitizer, "--tool", "memcheck", *small),), 45),
        Step("racecheck", ((*sanitizer, "--tool", "racecheck", *small, "--thin"),), 60),
        Step("distill", script("distill"), 90, item=60),
    ]


def write_report(path: Path, report: Report) -> None:
    try:
        path.with_suffix(".part").write_text(json.dumps(report, indent=1) + "\n")
        path.with_suffix(".part").replace(path)
    except OSError as failure:
        print(f"{path}: {failure}; the report stays as it was after the step before", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, help="folder of the report (default: benchmarks/results/gpu-<GPU>)")
    p.add_argument("--only", default="", help="steps to run, with commas between them (default: all)")
    p.add_argument("--total", type=float, default=TOTAL, help="seconds of all steps together (default: %(default)s)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once (default: one per core)")
    p.add_argument("--build", metavar="ARCHITECTURE", help="only build for this architecture, such as 90")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    a = p.parse_args(argv)
    if a.build:
        build(a.build, a.jobs)
        return 0
    begin, report = time.monotonic(), find_gpu()
    out: Path = (a.out or ROOT / "benchmarks" / "results" / f"gpu-{slug(report['gpu'])}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps = make_steps(out, report["compute_capability"].replace(".", ""))
    only = [name.strip() for name in a.only.split(",") if name.strip()]
    if unknown := [name for name in only if name not in {s.name for s in steps}]:
        p.error(f"--only: {unknown[0]!r} is none of {', '.join(s.name for s in steps)}")
    chosen = [s for s in steps if not only or s.name in only]
    for step in chosen:  # a step that runs again starts a new journal
        (out / f"{step.name}.jsonl").unlink(missing_ok=True)
    log = Log(out / "log.txt")
    log.write(f"== {report['gpu']}, driver {report['driver']}, torch {report['torch']}; report in {out}\n")
    path = out / "report.json"
    report["steps"] = json.loads(path.read_text()).get("steps", {}) if only and path.exists() else {}
    for step in chosen:
        left = min(step.limit, a.total - (time.monotonic() - begin))
        log.write(f"== {step.name} (at most {max(left, 0):.0f} s)\n")
        report["steps"][step.name] = run_step(step, out, left, log)
        write_report(path, report)
        if step.name == "build" and report["steps"]["build"]["rc"] != 0:
            break
    bad = [s.name for s in chosen if report["steps"].get(s.name, {"rc": 1})["rc"] != 0]
    for step in chosen:
        result = report["steps"].get(step.name)
        if result is None:
            log.write(f"{'not run':9}{step.name}\n")
            continue
        counts = ", ".join(f"{n} {outcome}" for outcome, n in result.get("items", {}).items())
        word = "FAILED" if step.name in bad else "passed"
        log.write(f"{word:9}{step.name:12}{result['seconds']:6.0f} s  {counts}\n")
        if "unfinished" in result:
            log.write(f"         unfinished: {result['unfinished']}\n")
        for line in result.get("not_passed", []):
            log.write(f"         {line['outcome']}: {line['end']}: {headline(line.get('reason', ''))}\n")
    log.write(f"{time.monotonic() - begin:.0f} s; wrote {path}\n")
    return 1 if bad else 0


def headline(reason: str) -> str:
    """Return the most useful line of a failure: pytest's first line of the error, or the first line."""
    lines = reason.splitlines() or [""]
    return next((line[1:].strip() for line in lines if line.startswith("E ")), lines[0])[:200]


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
