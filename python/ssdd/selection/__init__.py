"""Selections of real images by their representations. A selection is one file here and is registered by itself.

Such a file defines ``NAME``, its name in a study's file, and ``select(representations, count, seed)``, which returns
``count`` different rows of ``representations`` [N, D] as int64 [count].
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from torch import Tensor

from ..config import InputError
from .kmeans import kmeans_medoids
from .random import random_subset

Select = Callable[[Tensor, int, int], Tensor]

SELECTIONS: dict[str, Select] = {}
"""Name -> ``select`` of every file of this folder, in alphabetical order of the files."""

for _file in iter_modules(__path__):
    _module = import_module(f".{_file.name}", __name__)
    if hasattr(_module, "NAME"):
        SELECTIONS[_module.NAME] = _module.select


def choose(name: str, representations: Tensor, count: int, seed: int) -> Tensor:
    """Choose ``count`` different rows of ``representations`` [N, D] by the selection called ``name``; int64 [count]."""
    if name not in SELECTIONS:
        raise InputError(f"selection: expected one of {', '.join(SELECTIONS)}, got {name!r}")
    return SELECTIONS[name](representations, count, seed)


__all__ = ["SELECTIONS", "Select", "choose", "kmeans_medoids", "random_subset"]
