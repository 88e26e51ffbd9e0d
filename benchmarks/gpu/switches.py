"""Choose, for a while, what the library does not choose: context managers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from ssdd_ext import plan


@contextmanager
def _changed(module: ModuleType, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def products_for_distances() -> AbstractContextManager[None]:
    """Form squared distances of any size by products where that keeps their digits."""
    return _changed(plan.gpu, PRODUCTS=True, PRODUCTS_FROM=0)


def one_cluster() -> AbstractContextManager[None]:
    """Factor medium float32 matrices in one cluster of blocks each, on GPUs that have clusters."""
    return _changed(plan.gpu, CLUSTER=True)


def dependent_launch() -> AbstractContextManager[None]:
    """Let each kernel be put on the chip before the one before it has ended, on GPUs that have dependent launches."""
    return _changed(plan.gpu, DEPENDENT_LAUNCH=True)


def several_passes() -> AbstractContextManager[None]:
    """Compute the loss by the products of the plan, where it is computed in one pass over the queries."""
    return _changed(plan.one_pass, MOST_WORK=0)


def one_pass_of_any_batch() -> AbstractContextManager[None]:
    """Compute the loss of more than 32 support points in one pass over the queries, however few problems there are."""
    return _changed(plan.one_pass, LEAST_BATCH=1)
