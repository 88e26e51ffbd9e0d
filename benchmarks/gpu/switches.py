"""Turn on, for a while, what is off by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ssdd_ext import plan


@contextmanager
def one_cluster() -> Iterator[None]:
    """Factor medium float32 matrices in one cluster of blocks each, on GPUs that have clusters."""
    plan.gpu.CLUSTER = True
    try:
        yield
    finally:
        plan.gpu.CLUSTER = False
