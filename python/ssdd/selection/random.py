"""Random images: the start of KRR-ST, and the baseline beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from ._candidates import Candidates, check_count

NEEDS_REPRESENTATIONS = False


def select(candidates: Candidates, count: int, seed: int) -> Tensor:
    """:func:`random_subset` of the training images."""
    return random_subset(len(candidates.targets), count, seed)


def random_subset(n: int, count: int, seed: int) -> Tensor:
    """Draw ``count`` different rows of ``n`` at random; int64 [count]."""
    check_count(n, count)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
