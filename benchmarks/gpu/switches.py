"""Choose, for a while, what the library does not choose."""

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


@contextmanager
def several_passes() -> Iterator[None]:
    """Compute the loss by the products of the plan, where it is computed in one pass over the queries."""
    most = plan.one_pass.MOST_WORK
    plan.one_pass.MOST_WORK = 0
    try:
        yield
    finally:
        plan.one_pass.MOST_WORK = most


@contextmanager
def one_pass_of_any_batch() -> Iterator[None]:
    """Compute the loss of more than 32 support points in one pass over the queries, however few problems there are."""
    least = plan.one_pass.LEAST_BATCH
    plan.one_pass.LEAST_BATCH = 1
    try:
        yield
    finally:
        plan.one_pass.LEAST_BATCH = least
