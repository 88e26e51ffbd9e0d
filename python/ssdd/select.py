"""Choosing real images: at random, or as k-means medoids. A choice with its teacher representations is a baseline."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .artifact import DistilledSet
from .config import InputError
from .data import ImageSet


def _check(n: int, count: int) -> None:
    if not 1 <= count <= n:
        raise InputError(f"images: expected between 1 and {n}, the number of training images, got {count}")


def random_subset(n: int, count: int, seed: int) -> Tensor:
    """``count`` different rows of ``n``, int64, drawn at random: the start of KRR-ST and the "random" baseline."""
    _check(n, count)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


def kmeans_medoids(representations: Tensor, count: int, seed: int) -> Tensor:
    """``count`` different rows, int64: for each k-means cluster of the representations [N, D] the nearest member."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    _check(len(representations), count)
    points = representations.double()
    with threadpool_limits(1):  # sums in another order on another number of threads could pick another image
        centres = KMeans(count, n_init=10, random_state=seed).fit(points.numpy()).cluster_centers_
    distance = torch.cdist(torch.from_numpy(centres).double(), points)
    chosen: list[int] = []
    for row in distance:
        row[chosen] = float("inf")  # duplicates of an image must not fill two places
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen)


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
    y = (
        representations[rows]
        if targets == "teacher" or data.y_train is None
        else (F.one_hot(data.y_train[rows], data.classes).float())
    )
    return DistilledSet(
        images=data.x_train[rows].permute(0, 3, 1, 2).float().div(255),
        targets=y.clone(),
        preprocessing=data.preprocessing,
        method=method,
        seed=seed,
        source=data.name,
        target_kind="representation" if targets == "teacher" else "labels",
    )
