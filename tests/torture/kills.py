"""Runs of teacher, distill, study, pretrain, kd and two processes that are killed, run out of disk, or find torn files.

The end must have the bits of a run that was left alone. Every run is as small as an honest one can be, and is forked
from a process that has imported everything, so most of its time is the program's own. A run is killed and resumed up to
ten times: at a random moment of its processor time, which the load of the machine does not shift, or right before a
change of a file or folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SERVER = Path(__file__).resolve().parents[1] / "ssdd" / "fork_server.py"
TEACHER = ["--teacher.epochs=4", "--teacher.widths=4"]
SMALL = [
    *("--student.model=convnet-4", "--distill.pool=2", "--distill.pool_steps=3", "--distill.log_every=3"),
    *("-m", "4", "--steps", "12"),
]
STUDY = """
data = "few.npz"
teacher = "teacher.safetensors"
preset = "digits"
seeds = 1

[set]
"student.model" = "convnet-4"
"distill.images" = 4
"distill.steps" = 8
"distill.pool" = 2
"distill.pool_steps" = 3
"pretrain.steps" = 4

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
PRETRAIN = ["--model", "convnet-4", "--steps", "20", "--batch", "3"]
KD = ["--student.model=convnet-4", "--kd.epochs=6", "--pretrain.steps=10", "-q"]

WEIGHTS = {"teacher": 4, "distill": 4, "kd": 3, "pretrain": 3, "study": 3, "two processes": 1}
"""How often a verb is drawn."""
PACES = (0.1, 0.3, 0.6, 1.0)
"""The latest moment of a fault, in lives of a run that is left alone. One is drawn per case."""
MOST_FAULTS = 10
UNREADABLE = "None of the checkpoints can be read: start the run anew"
PATIENCE = 500
"""Seconds after which a run that should have ended is killed, and the case has failed: long, for a busy machine."""


class Server:
    """Processes forked from one that has imported ssdd."""

    def __init__(self, place: Path) -> None:
        self.place, self.unread = place, b""
        environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache"), "PYTHONSAFEPATH": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )

    def start(self, arguments: list[Any], size: int = 1, **extra: Any) -> list[int]:
        """Start the program and return its process ids."""
        assert self.process.stdin is not None
        request = {"size": size, "port": 0, "arguments": list(map(str, arguments)), "environment": {}}
        request |= {"output": str(self.place / "output"), **extra}
        if size > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                request["port"] = free.getsockname()[1]
        (self.place / "output").write_text("")
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        pids: list[int] = self.answer(PATIENCE)
        return pids

    def answer(self, seconds: float) -> Any:
        """Return the next answer, or None if there is none within these seconds."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self.unread:
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            assert more, "the fork server has ended"
            self.unread += more
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    def codes(self, pids: list[int], after: float | None = None, number: int = 0, to: slice = slice(None)) -> list[int]:
        """Wait for the end of the program and return the exit codes.

        If ``after`` is given, some of the processes get a signal when all together have used so much processor time.
        If one of several has ended and another has not, that one is asked to stop, as torchrun does.
        """
        begun, alone_since, asked = time.monotonic(), None, False
        while (codes := self.answer(0.2 if after is None else 0.003)) is None:
            now = time.monotonic()
            if after is not None and sum(map(used, pids)) >= after:
                send(pids[to], number)
                after = None
            left = [pid for pid in pids if not has_ended(pid)]
            if len(left) < len(pids):
                alone_since = alone_since or now
                if now - alone_since > 2 and not asked:
                    send(left, signal.SIGTERM)
                    asked = True
            if now - (alone_since or begun + PATIENCE) > 60:  # torchrun kills after 30 s
                send(left, signal.SIGKILL)
                assert alone_since, f"no end within {PATIENCE} s: {self.output()[-1500:]}"
        return list(codes)

    def output(self) -> str:
        return (self.place / "output").read_text(errors="replace")

    def finish(self, arguments: list[Any], size: int = 1, **extra: Any) -> None:
        """Run the program to its end, which must be a good one."""
        codes = self.codes(self.start(arguments, size, **extra))
        if any(codes):
            raise AssertionError(f"{arguments}: exit codes {codes}: {self.output()[-1500:]}")


def used(pid: int) -> float:
    """Return the processor time of a process, of its main thread, in seconds; infinite if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return float("inf")


def has_ended(pid: int) -> bool:
    """Return True for a process that is gone, or that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Kind:
    """One verb: how it begins in a folder, how it continues, and what its result is."""

    def __init__(self, begin: Any, resume: Any, result: Any, size: int = 1) -> None:
        self.begin, self.resume, self.result, self.size = begin, resume, result, size
        self.expected: Any = None
        self.life = self.changes = self.largest = 0.0
        """Of a run that is left alone: its processor time, changes of files, and largest file in bytes."""


def few_images() -> dict[str, np.ndarray]:
    """Return 40 images of two classes, and 12 for testing."""
    rng = np.random.default_rng(0)

    def images(labels: np.ndarray) -> np.ndarray:
        bright = 100 * labels[:, None, None, None] * (np.arange(8)[None, None, :, None] > 3)
        return (rng.integers(0, 120, (len(labels), 8, 8, 1)) + bright).astype(np.uint8)

    y_train, y_test = np.arange(40) % 2, np.arange(12) % 2
    return {"x_train": images(y_train), "y_train": y_train, "x_test": images(y_test), "y_test": y_test}


def prepare(place: Path) -> Any:
    """Make the images, a teacher, a classifier and a distilled set; each verb runs alone when it is first drawn."""
    server = Server(place)
    np.savez(place / "few.npz", **few_images())
    data = ["-d", place / "few.npz"]
    teacher, classifier, pairs = (place / f"{name}.safetensors" for name in ("teacher", "classifier", "pairs"))
    server.finish(["teacher", "-q", *data, "-o", teacher, *TEACHER[:2]])
    few = ["-q", "--model", "convnet-4", "--classifier.epochs", "1"]
    server.finish(["train-classifier", *data, "-o", classifier, *few])
    server.finish(["distill", "-q", *data, "-t", teacher, "-o", place / "pairs", *SMALL[:-1], "4"])
    shutil.copy(place / "pairs" / "distilled.safetensors", pairs)
    (place / "study.toml").write_text(STUDY.replace("few.npz", str(place / "few.npz")))
    kd = [pairs, "-t", classifier, *data, *KD]
    own = ["-q", "--checkpoint-every", "0"]
    kinds = {
        "teacher": Kind(
            lambda f: ["teacher", *data, "-o", f / "t.safetensors", *own, *TEACHER],
            lambda f: ["teacher", "--resume", f / "t.safetensors", "-q"],
            lambda f: tensors(f / "t.safetensors"),
        ),
        "distill": Kind(
            lambda f: ["distill", *data, "-o", f / "run", *own, *SMALL, *TEACHER],
            lambda f: ["distill", "--resume", f / "run", "-q"],
            lambda f: tensors(f / "run" / "distilled.safetensors"),
        ),
        "two processes": Kind(
            lambda f: ["distill", *data, "-t", teacher, "-o", f / "run", *own, *SMALL],
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
        folder, server, changes = shared["place"] / f"reference {name}", shared["server"], shared["place"] / "changes"
        folder.mkdir()
        changes.unlink(missing_ok=True)
        pids = server.start(kind.begin(folder), kind.size, changes=str(changes))
        while (codes := server.answer(0.003)) is None:
            spent = sum(map(used, pids))
            kind.life = spent if spent < float("inf") else kind.life
        assert not any(codes), server.output()[-1500:]
        kind.expected, kind.changes = kind.result(folder), int(changes.read_text())
        kind.largest = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return kind


def draw_fault(rng: random.Random, kind: Kind, pace: float) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return a fault in words, what to tell the fork server, and the signal to send."""
    fault = rng.choices(("kill", "kill at a change", "ask", "full disk", "clock"), (8, 6, 3, 2, 1))[0]
    extra: dict[str, Any] = {}
    signals: dict[str, Any] = {"after": kind.life * rng.uniform(0, pace), "number": signal.SIGKILL}
    if fault == "kill at a change":
        extra["die"] = [rng.randrange(kind.size), rng.randint(1, max(1, round(kind.changes * pace)))]
        signals = {}
    elif fault == "ask":
        signals["number"] = signal.SIGTERM
    elif fault == "full disk":
        extra["file_size"] = round(kind.largest * rng.uniform(0, 1) ** 3) + 1
        signals = rng.choice((signals, {}))
    elif fault == "clock":
        extra["clock"] = rng.choice((-1, 1)) * rng.uniform(60, 3e8)
    if fault == "kill" and kind.size > 1 and rng.random() < 0.3:
        signals["to"] = slice(0, 1) if rng.random() < 0.5 else slice(1, 2)
    return fault, extra, signals


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    """One run with up to ten faults."""
    name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    kind, server = reference(shared, name), shared["server"]
    pace, faults, torn, counts = rng.choice(PACES), [], False, {f"{name}: runs": 1}
    arguments = kind.begin(folder)
    for _ in range(rng.randint(2, MOST_FAULTS)):
        fault, extra, signals = draw_fault(rng, kind, pace)
        codes = server.codes(server.start(arguments, kind.size, **extra), **signals)
        output = server.output()
        moment = f" after {signals['after']:.3f} s" if signals else ""
        faults.append(f"{fault}{f' {extra}' if extra else ''}{moment}: {codes}")
        # A fault that the run did not live to see is none.
        if any(codes):
            counts[f"{name}: {fault}"] = counts.get(f"{name}: {fault}", 0) + 1
        anew = torn and UNREADABLE in output
        check_end(kind, fault, codes, output, faults, anew)
        if not any(codes):
            break
        arguments = kind.resume(folder) if started(folder) and not anew else again(kind.begin(folder))
        if rng.random() < 0.15 and tear(rng, folder):
            counts[f"{name}: torn file"] = counts.get(f"{name}: torn file", 0) + 1
            faults.append("the newest checkpoint is torn")
            torn = True
    if any(codes):
        codes = server.codes(server.start(arguments, kind.size))
        if any(codes) and torn and UNREADABLE in server.output():
            codes = server.codes(server.start(again(kind.begin(folder)), kind.size))
        assert not any(codes), f"{faults}, then {codes}: {server.output()[-1500:]}"
    assert same(kind.result(folder), kind.expected), f"other bits after {faults}"
    return {"kind": name, "faults": faults, "counts": counts}


def check_end(kind: Kind, fault: str, codes: list[int], output: str, faults: list[str], anew: bool) -> None:
    """Refuse an end that the fault does not explain."""
    killed = {0, -signal.SIGKILL}
    stopped = {0, 130, 143, -signal.SIGTERM}
    allowed = {"ask": stopped, "full disk": killed | {1}}.get(fault, killed)
    if kind.size > 1 or anew:
        allowed = allowed | {1}  # the other process has gone
    if kind.size > 1:
        allowed = allowed | {-signal.SIGTERM, 130}
    assert set(codes) <= allowed, f"{faults}: {output[-1500:]}"
    assert "Traceback" not in output, f"{faults}: {output[-1500:]}"


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
        return one.keys() == other.keys() and all(bits(one[key]) == bits(other[key]) for key in one)
    return bool(one == other)


def bits(t: Any) -> tuple[Any, Any, bytes]:
    return t.dtype, t.shape, t.contiguous().numpy().tobytes()


def close(shared: Any) -> None:
    process = shared["server"].process
    process.stdin.close()
    process.kill()
    process.wait()
