"""k-centre: each next image is the one farthest from those chosen, in the space of the representations."""

from __future__ import annotations

import torch
from torch import Tensor

from ._candidates import Candidates, check_count


def select(candidates: Candidates, count: int, seed: int) -> Tensor:
    """Greedy farthest points (Gonzalez, 1985) from a random first image; at most twice the smallest possible radius.

    The radius is the largest distance of an image to the nearest one chosen.
    """
    points = candidates.points
    check_count(len(points), count)
    first = int(torch.randint(0, len(points), (), generator=torch.Generator().manual_seed(seed)))
    chosen = [first]
    nearest = (points - points[first]).square().sum(1)
    while len(chosen) < count:
        nearest[chosen] = -1  # duplicates of an image must not fill two places
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)
