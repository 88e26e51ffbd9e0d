"""Repeated calls: the resident memory of the process stays flat, within a case and from the first cases to the last."""

from __future__ import annotations

import ctypes
import gc
import random
from pathlib import Path
from typing import Any

import threads

REPEATS, ALLOWED = 400, 8 << 20
"""Calls per case, and the bytes that the memory may grow by while they run."""
FIRST, ALLOWED_LATER = 40, 32 << 20
"""Cases that set the level of the whole part, and the bytes that the memory may be above it at the end of any later."""


def resident() -> int:
    """Return the resident memory in bytes, without what the allocator keeps for later: large blocks of an earlier case
    stay there for tens of cases, up to 35 MB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def prepare(place: Path) -> dict[str, int]:
    """Return the cases so far, and the level that they have set."""
    return {"cases": 0, "level": 0}


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    call = threads.problem(rng)
    for _ in range(20):
        call()
    before = resident()
    for _ in range(REPEATS):
        call()
    now = resident()
    assert now - before <= ALLOWED, f"{REPEATS} calls grew the memory by {(now - before) / 1e6:.1f} MB"
    shared["cases"] += 1
    if shared["cases"] <= FIRST:
        shared["level"] = max(shared["level"], now)
    above = now - shared["level"]
    assert above <= ALLOWED_LATER, f"{shared['cases']} cases grew the memory by {above / 1e6:.1f} MB"
    return {"grown": now - before, "above": above, "counts": {"repeated calls": REPEATS}}
