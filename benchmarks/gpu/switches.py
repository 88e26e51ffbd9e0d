"""Turn on, for a while, what is off by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ssdd_ext import plan


@contextmanager
def products_for_distances() -> Iterator[None]:
    """Form squared distances of any size by products where that keeps their digits."""
    least = plan.gpu.PRODUCTS_FROM
    plan.gpu.PRODUCTS, plan.gpu.PRODUCTS_FROM = True, 0
    try:
        yield
    finally:
        plan.gpu.PRODUCTS, plan.gpu.PRODUCTS_FROM = False, least


@contextmanager
def one_cluster() -> Iterator[None]:
    """Factor medium float32 matrices in one cluster of blocks each, on GPUs that have clusters."""
    plan.gpu.CLUSTER = True
    try:
        yield
    finally:
        plan.gpu.CLUSTER = False
