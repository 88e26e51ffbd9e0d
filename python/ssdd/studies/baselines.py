"""Baselines: real images as a distilled set, with the teacher's representations or labels as targets."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..artifact import DistilledSet
from ..config import InputError, in_float32
from ..data import ImageSet


@in_float32
def baseline(
    data: ImageSet,
    rows: Tensor,
    representations: Tensor,
    *,
    method: str,
    seed: int,
    targets: Literal["teacher", "labels"] = "teacher",
) -> DistilledSet:
    """Return chosen training images as a distilled set.

    Args:
        data: the images.
        rows: the rows of the chosen training images, int64 [S].
        representations: the teacher's representations of the training images, float32 [N, D].
        method: name of the row in tables.
        seed: the seed of the choice.
        targets: "teacher" (default): their representations; "labels": their labels, one-hot.
    """
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
