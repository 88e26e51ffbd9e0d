"""Real images as a distilled set: a selection with the teacher's representations, or with labels, as targets."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..artifact import DistilledSet
from ..config import InputError
from ..data import ImageSet


def baseline(
    data: ImageSet,
    rows: Tensor,
    representations: Tensor,
    *,
    method: str,
    seed: int,
    targets: Literal["teacher", "labels"] = "teacher",
) -> DistilledSet:
    """The training images ``rows`` with their teacher representations, or with their labels (one-hot)."""
    if targets == "labels" and data.y_train is None:
        raise InputError(f"random_targets: 'labels' needs labelled training images; {data.name} has none")
    y = representations[rows] if targets == "teacher" else data.one_hot()[rows]
    return DistilledSet(
        images=data.x_train[rows].permute(0, 3, 1, 2).float().div(255),
        targets=y.clone(),
        preprocessing=data.preprocessing,
        method=method,
        seed=seed,
        source=data.name,
        target_kind="representation" if targets == "teacher" else "labels",
    )
