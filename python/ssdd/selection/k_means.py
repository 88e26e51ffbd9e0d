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
    check_count(len(representations), count)
    points = representations.double()
    distance = torch.cdist(kmeans_centres(points, count, seed), points)
    chosen: list[int] = []
    for row in distance:
        row[chosen] = float("inf")  # duplicates of an image must not fill two places
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen)


def kmeans_centres(points: Tensor, count: int, seed: int) -> Tensor:
    """Return the centres of ``count`` k-means clusters of ``points`` [N, D], float64 [count, D]."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # another number of threads sums in another order, which could choose another image
        found = KMeans(count, n_init=10, random_state=seed).fit(points.double().numpy())
    return torch.from_numpy(found.cluster_centers_).double()
