"""Selections of real images. A selection is one file of this folder and is registered by itself.

``high_loss.py`` is the selection "high-loss": the setting ``distill.initial`` and the rows of a study know it by that
name. The file defines ``select(candidates, count, seed)``, which returns ``count`` different rows of the training
images as int64 [count]. A file with ``NEEDS_REPRESENTATIONS = False`` works without a teacher. Files whose name begins
with an underscore are no selections.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from ..config import SELECTION_NAMES, InputError
from ._candidates import Candidates
from .k_means import kmeans_centres, kmeans_medoids
from .random import random_subset

Select = Callable[[Candidates, int, int], Tensor]

_FILES = {name: import_module(f".{name.replace('-', '_')}", __name__) for name in SELECTION_NAMES}
SELECTIONS: dict[str, Select] = {name: file.select for name, file in _FILES.items()}
"""Name -> ``select`` of every file of this folder, in alphabetical order."""


def needs_representations(name: str) -> bool:
    """Return True if the selection called ``name`` looks at the teacher's representations."""
    return getattr(_FILES[name], "NEEDS_REPRESENTATIONS", True)


def choose(name: str, candidates: Candidates, count: int, seed: int) -> Tensor:
    """Choose ``count`` different training images by the selection called ``name``; int64 [count]."""
    if name not in SELECTIONS:
        raise InputError(f"selection: expected one of {', '.join(SELECTIONS)}, got {name!r}")
    return SELECTIONS[name](candidates, count, seed)


__all__ = [
    "SELECTIONS",
    "Candidates",
    "Select",
    "choose",
    "kmeans_centres",
    "kmeans_medoids",
    "needs_representations",
    "random_subset",
]
