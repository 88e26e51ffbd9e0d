"""The campaign of faults: random kills, hostile calls, damaged files, threads and forks, repeated calls.

Every case is one seed, so a failure can be replayed: ``python tests/torture/run.py --replay PART:SEED``. One line of
JSON per case goes to the report, a summary to standard output. Each part runs in a process of its own. If it dies, the
case that it had begun counts as a crash, and the part goes on with the next seed.

    python tests/torture/run.py --minutes 10 [--only kills,calls,formula,readers,threads,memory] [--seed 0] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

PARTS = ("kills", "calls", "formula", "readers", "threads", "memory")
SHARE = {"kills": 5, "calls": 3, "formula": 3, "readers": 3, "threads": 1, "memory": 1}
"""Shares of the time."""


def run_cases(part: str, seed: int, seconds: float, most: int | None, place: Path, out: Any) -> None:
    """Run cases of one part in this process: seed, seed + 1, ... Each writes a line when it begins and one when it
    ends."""
    module = import_module(part)
    work = place / part
    work.mkdir(parents=True, exist_ok=True)
    shared = module.prepare(work)
    begin, done = time.monotonic(), 0
    while time.monotonic() - begin < seconds and (most is None or done < most):
        write(out, {"part": part, "seed": seed, "begins": True})
        write(out, one_case(module, part, seed, shared, work))
        seed, done = seed + 1, done + 1
    if hasattr(module, "close"):
        module.close(shared)


def one_case(module: Any, part: str, seed: int, shared: Any, work: Path) -> dict[str, Any]:
    """Run one case and return its line."""
    begin = time.monotonic()
    line: dict[str, Any] = {"part": part, "seed": seed}
    folder = work / f"case-{seed}"
    folder.mkdir(exist_ok=True)
    try:
        line |= {"ok": True, **(module.case(random.Random(f"{part}:{seed}"), shared, folder) or {})}
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is what the campaign looks for)
        if isinstance(error, KeyboardInterrupt):
            raise
        line |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
        line["where"] = traceback.format_exc().splitlines()[-12:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    line["seconds"] = round(time.monotonic() - begin, 3)
    return line


def write(out: Any, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def supervise(part: str, a: argparse.Namespace, seconds: float, place: Path) -> list[dict[str, Any]]:
    """Run a part in child processes until its time is over; return its lines."""
    end, seed, lines = time.monotonic() + seconds, a.seed, []
    while (left := end - time.monotonic()) > 1 and (a.cases is None or len(lines) < a.cases):
        file = place / f"{part}.jsonl"
        file.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--worker", part, "--seed", str(seed), "--seconds", str(left)]
        command += ["--place", str(place), "--out", str(file)]
        if a.cases is not None:
            command += ["--cases", str(a.cases - len(lines))]
        with open(place / f"{part}.output", "ab") as output:
            child = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment(part)})
            try:
                code = child.wait(timeout=left + 600)
            except subprocess.TimeoutExpired:
                child.kill()
                code = child.wait()
        found = read_lines(file)
        lines += [line for line in found if "begins" not in line]
        begun = [line["seed"] for line in found if "begins" in line]
        finished = {line["seed"] for line in found if "begins" not in line}
        crashed = [s for s in begun if s not in finished]
        whole = (place / f"{part}.output").read_text(errors="replace")
        marks = [at for mark in ("AddressSanitizer: ", "runtime error: ") if (at := whole.rfind(mark)) >= 0]
        last_output = whole[max(0, min(marks) - 200) :][:2000] if marks else whole[-2000:]
        for s in crashed:
            error = f"process ended with {code}{doing(place / part / 'last')}"
            lines.append({"part": part, "seed": s, "ok": False, "error": error, "output": last_output})
        if code and not crashed:
            lines.append(
                {"part": part, "seed": seed, "ok": False, "error": f"could not begin ({code})", "output": last_output}
            )
            break
        seed = max(begun, default=seed) + 1
        if not crashed:
            break
    return lines


def doing(file: Path) -> str:
    """Return what a crashed part was doing, from a file that it keeps about this."""
    text = file.read_text(errors="replace").strip("\0 ") if file.is_file() else ""
    return f" in {text}" if text else ""


def environment(part: str) -> dict[str, str]:
    """Return the environment of a part: a core with sanitizers for the hostile calls, if one is built."""
    values = {"OMP_NUM_THREADS": "2" if part == "threads" else "1", "PYTHONHASHSEED": "0"}
    site = os.environ.get("TORTURE_SANITIZED")
    if part == "calls" and site:
        # The C++ library too: AddressSanitizer looks for its functions at the start, before torch loads it.
        names = ("libasan.so", "libstdc++.so")
        found = [subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True) for name in names]
        libraries = " ".join(one.stdout.strip() for one in found)
        values |= {
            "LD_PRELOAD": libraries,
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:halt_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONPATH": site + os.pathsep + os.environ.get("PYTHONPATH", ""),
        }
    return values


def read_lines(file: Path) -> list[dict[str, Any]]:
    lines = []
    for text in file.read_text().splitlines() if file.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # a line that was cut short when the process died
    return lines


def summary(part: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for line in lines:
        for key, value in (line.get("counts") or {}).items():
            counts[key] = counts.get(key, 0) + value
    failed = [line for line in lines if not line["ok"]]
    return {
        "part": part,
        "cases": len(lines),
        "failed": len(failed),
        "seconds": round(sum(line.get("seconds", 0.0) for line in lines)),
        "counts": counts,
        "replay": [f"{part}:{line['seed']}" for line in failed[:20]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="Time of the whole campaign.")
    parser.add_argument("--only", default=",".join(PARTS), help="Parts to run, with commas between.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the first case of each part.")
    parser.add_argument("--cases", type=int, help="At most so many cases per part.")
    parser.add_argument("--out", type=Path, default=Path("build/torture.jsonl"), help="The report, one line per case.")
    parser.add_argument("--replay", metavar="PART:SEED", help="Run this case alone.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        with open(a.out, "a") as out:
            run_cases(a.worker, a.seed, a.seconds, a.cases, a.place, out)
        return 0
    if a.replay:
        part, _, seed = a.replay.partition(":")
        values = environment(part)
        if "LD_PRELOAD" in values and "LD_PRELOAD" not in os.environ:  # with the sanitizers, as the case ran
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **values})
        with tempfile.TemporaryDirectory() as place:
            run_cases(part, int(seed), 1e9, 1, Path(place), sys.stdout)
        return 0
    parts = a.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    total, summaries = sum(SHARE[part] for part in parts), []
    a.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, open(a.out, "w") as out:
        for part in parts:
            lines = supervise(part, a, 60 * a.minutes * SHARE[part] / total, Path(place))
            for line in lines:
                write(out, line)
            summaries.append(summary(part, lines))
            print(json.dumps(summaries[-1]), flush=True)
        write(out, {"summary": summaries})
    for line in read_lines(a.out):
        if line.get("ok") is False:
            print(f"FAILED {line['part']}:{line['seed']}: {line['error'][:300]}")
    return int(any(s["failed"] for s in summaries))


if __name__ == "__main__":
    sys.exit(main())
