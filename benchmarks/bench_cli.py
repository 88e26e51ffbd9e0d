"""The time of program calls that compute nothing: help, a usage error, the settings, the version.

Each command is a process of its own, as a user starts it. One row per command has its seconds and the aim. It also
names the large packages that the command loads (torch first of all), which would make it slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from timing import arguments, write

from ssdd_ext.bench import machine, summary

COMMANDS: dict[str, tuple[list[str], int, float]] = {
    "ssdd --help": (["-m", "ssdd.cli", "--help"], 0, 1.0),
    "ssdd distill --help": (["-m", "ssdd.cli", "distill", "--help"], 0, 1.0),
    "ssdd --version": (["-m", "ssdd.cli", "--version"], 0, 1.0),
    "ssdd settings cifar100": (["-m", "ssdd.cli", "settings", "cifar100"], 0, 1.0),
    "a usage error": (["-m", "ssdd.cli", "distill", "--distill.speed", "1"], 2, 1.5),
    "python -c 'import ssdd'": (["-c", "import ssdd"], 0, 1.0),
    "python -c pass": (["-c", "pass"], 0, 1.0),
}
"""What is started -> its arguments, its exit status, and the aim in seconds."""


def measure(command: Sequence[str], status: int, repeats: int, seconds: float) -> list[float]:
    """Measure seconds of single runs, after one that fills the file system's caches."""
    samples: list[float] = []
    begin = time.perf_counter()
    for i in range(repeats + 1):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode != status:
            raise RuntimeError(f"{command}: expected exit status {status}, got {done.returncode}: {done.stderr}")
        if i:
            samples.append(time.perf_counter() - start)
        if len(samples) > 1 and time.perf_counter() - begin > seconds:
            break
    return samples


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    a = arguments(__doc__, 10.0, argv)
    os.environ["PYTHONSAFEPATH"] = "1"
    rows = []
    for name, (command, status, aim) in COMMANDS.items():
        samples = summary(measure(command, status, a.repeats, a.seconds))
        rows.append({"command": name, "seconds": samples, "aim": aim, **machine.describe(a.device)})
        print(f"{name:26} {samples['median']:.3f} s (aim: at most {aim:g} s)", flush=True)
    write(a, "cli", rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
