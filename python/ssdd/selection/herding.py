"""Herding: images whose mean representation is that of the whole set, chosen one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from ._candidates import Candidates, check_count


def select(candidates: Candidates, count: int, seed: int) -> Tensor:
    """Greedy matching of the mean (Welling, 2009): the t-th image is the one that brings the mean of t images nearest.

    Nothing is drawn: every ``seed`` gives the same images.
    """
    points = candidates.points
    check_count(len(points), count)
    mean, length = points.mean(0), points.square().sum(1)
    missing = torch.zeros_like(mean)  # t times the mean, less the images chosen
    chosen: list[int] = []
    for _ in range(count):
        missing = missing + mean
        distance = length - 2 * points @ missing  # ||missing - point||^2, less what all points share
        distance[chosen] = float("inf")
        chosen.append(int(distance.argmin()))
        missing = missing - points[chosen[-1]]
    return torch.tensor(chosen)
