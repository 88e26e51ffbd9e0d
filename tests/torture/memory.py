"""Repeated calls: the resident memory of the process stays flat."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import threads

REPEATS, ALLOWED = 400, 8 << 20
"""Calls per case, and the bytes that the memory may grow by while they run."""


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def prepare(place: Path) -> Any:
    return None


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    call = threads.problem(rng)
    for _ in range(20):
        call()
    gc.collect()
    before = resident()
    for _ in range(REPEATS):
        call()
    gc.collect()
    grown = resident() - before
    assert grown <= ALLOWED, f"{REPEATS} calls grew the memory by {grown / 1e6:.1f} MB"
    return {"grown": grown, "counts": {"repeated calls": REPEATS}}
