"""k-means medoids: one image per cluster of the representations."""

from __future__ import annotations

import torch
from torch import Tensor

from ._candidates import Candidates, check_count


def select(candidates: Candidates, count: int, seed: int) -> Tensor:
    """:func:`kmeans_medoids` of the representations."""
    return kmeans_medoids(candidates.points, count, seed)


def kmeans_medoids(representations: Tensor, count: int, seed: int) -> Tensor:
    """Choose the member nearest to the centre of each of ``count`` k-means clusters.

    Args:
        representations: floating point [N, D].
        count: the number of clusters, from 1 to N.
        seed: seed of k-means.

    Returns:
        ``count`` different rows, int64 [count].
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    check_count(len(representations), count)
    points = representations.double()
    with threadpool_limits(1):  # another number of threads sums in another order, which could choose another image
        centres = KMeans(count, n_init=10, random_state=seed).fit(points.numpy()).cluster_centers_
    distance = torch.cdist(torch.from_numpy(centres).double(), points)
    chosen: list[int] = []
    for row in distance:
        row[chosen] = float("inf")  # duplicates of an image must not fill two places
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen)
