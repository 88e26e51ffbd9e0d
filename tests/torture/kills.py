"""Runs of teacher, distill, study, pretrain, kd and two processes that are killed, run out of disk, or find torn files.

The end must have the bits of a run that was left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

SERVER = Path(__file__).resolve().parents[1] / "ssdd" / "fork_server.py"
SMALL = [
    *("--teacher.epochs=4", "--teacher.widths=4-8", "--student.model=convnet-4-8", "--distill.pool=2"),
    *("--distill.pool_steps=8", "--distill.log_every=7", "-m", "6", "--steps", "40"),
]
STUDY = """
data = "digits"
teacher = "teacher.safetensors"
preset = "digits"
seeds = 1

[set]
"student.model" = "convnet-4-8"
"distill.images" = 6
"distill.steps" = 30
"distill.pool" = 2
"distill.pool_steps" = 8
"pretrain.steps" = 10

[[row]]
name = "no pre-training"
from = "nothing"

[[row]]
name = "random + teacher"
from = "random"

[[row]]
name = "KRR-ST"
from = "krr-st"
"""
PRETRAIN = ["--model", "convnet-4-8", "--steps", "100", "--batch", "3"]
KD = ["--student.model=convnet-4", "--kd.epochs=6", "--pretrain.steps=10", "-q"]


WEIGHTS = {"teacher": 4, "distill": 4, "kd": 3, "pretrain": 2, "study": 2, "two processes": 1}
"""How often a verb is drawn."""


class Server:
    """Processes forked from one that has imported ssdd."""

    def __init__(self, place: Path) -> None:
        self.place = place
        environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache"), "PYTHONSAFEPATH": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, arguments: list[Any], size: int = 1, **extra: Any) -> list[int]:
        """Start the program and return its process ids."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        request = {"size": size, "port": port, "arguments": list(map(str, arguments)), "environment": {}}
        request |= {"output": str(self.place / "output"), **extra}
        (self.place / "output").write_text("")
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        pids: list[int] = json.loads(self.process.stdout.readline())
        return pids

    def codes(self) -> list[int]:
        """Wait for the end of the program and return the exit code of each process."""
        assert self.process.stdout is not None
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes

    def finish(self, arguments: list[Any], size: int = 1) -> None:
        """Run the program to its end, which must be a good one."""
        self.start(arguments, size)
        codes = self.codes()
        if any(codes):
            raise AssertionError(f"{arguments}: exit codes {codes}: {(self.place / 'output').read_text()[-1500:]}")

    def kill_after(self, seconds: float, pids: list[int], number: int) -> list[int]:
        """Send a signal after some time, unless the program has ended, and return its exit codes."""

        def send() -> None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

        timer = threading.Timer(seconds, send)
        timer.start()
        watchdog = threading.Timer(seconds + 120, lambda: [os.kill(p, signal.SIGKILL) for p in pids if _lives(p)])
        watchdog.start()
        try:
            return self.codes()
        finally:
            timer.cancel()
            watchdog.cancel()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Kind:
    """One verb: how it begins in a folder, how it continues, and what its result is."""

    def __init__(self, begin: Any, resume: Any, result: Any, size: int = 1) -> None:
        self.begin, self.resume, self.result, self.size = begin, resume, result, size
        self.expected: Any = None
        self.seconds = 1.0


def prepare(place: Path) -> Any:
    """Run every verb once without a fault, which gives the bits to compare with and the time that it takes."""
    server = Server(place)
    teacher, classifier, pairs = (place / f"{name}.safetensors" for name in ("teacher", "classifier", "pairs"))
    server.finish(["teacher", "-q", "-o", teacher, *SMALL[:2]])
    few = ["-q", "--model", "convnet-4", "--classifier.epochs", "1"]
    server.finish(["train-classifier", "-d", "digits", "-o", classifier, *few])
    server.finish(["distill", "-q", "-t", teacher, "-o", place / "pairs", *SMALL[2:-1], "4"])
    shutil.copy(place / "pairs" / "distilled.safetensors", pairs)
    (place / "study.toml").write_text(STUDY)
    kd = [pairs, "-t", classifier, "-d", "digits", *KD]
    own = ["-q", "--checkpoint-every", "0"]
    kinds = {
        "teacher": Kind(
            lambda f: ["teacher", "-o", f / "t.safetensors", *own, *SMALL[:2]],
            lambda f: ["teacher", "--resume", f / "t.safetensors", "-q"],
            lambda f: tensors(f / "t.safetensors"),
        ),
        "distill": Kind(
            lambda f: ["distill", "-o", f / "run", *own, *SMALL],
            lambda f: ["distill", "--resume", f / "run", "-q"],
            lambda f: tensors(f / "run" / "distilled.safetensors"),
        ),
        "two processes": Kind(
            lambda f: ["distill", "-t", teacher, "-o", f / "run", *own, *SMALL[2:]],
            lambda f: ["distill", "--resume", f / "run", "-q"],
            lambda f: tensors(f / "run" / "distilled.safetensors"),
            size=2,
        ),
        "study": Kind(
            lambda f: ["study", place / "study.toml", "-o", f / "out"],
            lambda f: ["study", place / "study.toml", "-o", f / "out"],
            lambda f: cells(f / "out" / "cells.jsonl"),
        ),
        "pretrain": Kind(
            lambda f: ["pretrain", pairs, "-o", f / "w.safetensors", *own, *PRETRAIN],
            lambda f: ["pretrain", "--resume", f / "w.safetensors", "-q"],
            lambda f: tensors(f / "w.safetensors"),
        ),
        "kd": Kind(
            lambda f: ["kd", *kd, "-o", f / "s.safetensors", "--checkpoint-every", "0"],
            lambda f: ["kd", "--resume", f / "s.safetensors", "-q"],
            lambda f: tensors(f / "s.safetensors"),
        ),
    }
    return {"server": server, "kinds": kinds, "place": place}


def reference(shared: Any, name: str) -> Kind:
    """Return the verb, after it has run once without a fault."""
    kind = shared["kinds"][name]
    if kind.expected is None:
        folder = shared["place"] / f"reference {name}"
        folder.mkdir()
        begin = time.monotonic()
        shared["server"].finish(kind.begin(folder), kind.size)
        kind.seconds, kind.expected = time.monotonic() - begin, kind.result(folder)
    return kind


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    """One run with one to three faults."""
    name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    kind, server = reference(shared, name), shared["server"]
    faults, counts = [], {f"{name}: runs": 1}
    arguments = kind.begin(folder)
    for _ in range(rng.randint(1, 3)):
        extra: dict[str, Any] = {}
        fault = rng.choices(("kill", "ask", "full disk", "clock"), (6, 2, 2, 1))[0]
        if fault == "full disk":
            extra["file_size"] = rng.choice((512, 4096, 20_000, 60_000))
        if fault == "clock":
            extra["clock"] = rng.choice((-1, 1)) * rng.uniform(60, 3e8)
        number = signal.SIGTERM if fault == "ask" else signal.SIGKILL
        pids = server.start(arguments, kind.size, **extra)
        after = kind.seconds * rng.uniform(0.02, 1.0)
        codes = server.kill_after(after, pids, number)
        output = (server.place / "output").read_text()
        faults.append(f"{fault} after {after:.2f} s: {codes}")
        counts[f"{name}: {fault}"] = counts.get(f"{name}: {fault}", 0) + 1
        allowed = {0, 1, 130, 143, -signal.SIGKILL, -signal.SIGTERM}
        assert set(codes) <= allowed, f"{faults}: {output[-1500:]}"
        assert "Traceback" not in output, f"{faults}: {output[-1500:]}"
        if rng.random() < 0.3 and tear(rng, folder):
            counts[f"{name}: torn file"] = counts.get(f"{name}: torn file", 0) + 1
            faults.append("the newest checkpoint is torn")
        arguments = kind.resume(folder) if started(folder) else again(kind.begin(folder))
        if not any(codes):
            break
    if any(codes):
        server.start(arguments, kind.size)
        codes, output = server.codes(), (server.place / "output").read_text()
        if any(codes) and "None of the checkpoints can be read: start the run anew" in output:
            server.start(again(kind.begin(folder)), kind.size)
            codes, output = server.codes(), (server.place / "output").read_text()
        assert not any(codes), f"{faults}, then {codes}: {output[-1500:]}"
    assert same(kind.result(folder), kind.expected), f"other bits after {faults}"
    return {"kind": name, "faults": faults, "counts": counts}


def again(arguments: list[Any]) -> list[Any]:
    """Return the arguments that begin a run anew where an earlier one may have left files."""
    return arguments if arguments[0] == "study" else [*arguments, "--overwrite"]


def started(folder: Path) -> bool:
    """Return True if a run can be resumed: its arguments are stored."""
    return any(folder.rglob("run.json"))


def tear(rng: random.Random, folder: Path) -> bool:
    """Cut the newest checkpoint short, or leave half of a new one; False if there is none."""
    files = sorted(folder.rglob("checkpoints/*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return False
    content = files[-1].read_bytes()
    if rng.random() < 0.3:
        files[-1].with_name(files[-1].name + ".torn").write_bytes(content[: rng.randrange(len(content))])
    else:
        files[-1].write_bytes(content[: rng.randrange(len(content))])
    return True


def tensors(file: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(file)


def cells(file: Path) -> Any:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    keep = ("row", "seed", "set", "error", "probes", "finetuned")
    return sorted(json.dumps({key: line.get(key) for key in keep}) for line in lines if "probes" in line)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(bool((one[key] == other[key]).all()) for key in one)
    return bool(one == other)


def close(shared: Any) -> None:
    process = shared["server"].process
    process.stdin.close()
    process.kill()
    process.wait()
