"""Random images: the initial images of KRR-ST, and a baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from ._candidates import Candidates, check_count

NEEDS_REPRESENTATIONS = False


def select(candidates: Candidates, count: int, seed: int) -> Tensor:
    """Apply :func:`random_subset` to the training images."""
    return random_subset(len(candidates.targets), count, seed)


def random_subset(n: int, count: int, seed: int) -> Tensor:
    """Draw ``count`` different rows of ``n`` at random.

    Args:
        n: the number of rows.
        count: how many to draw, from 1 to ``n``.
        seed: seed of the draw.

    Returns:
        int64 [count].
    """
    check_count(n, count)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
