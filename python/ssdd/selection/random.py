"""Random images: the start of KRR-ST, and the baseline beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from .check import check_count

NAME = "random"


def select(representations: Tensor, count: int, seed: int) -> Tensor:
    """:func:`random_subset` of the rows of ``representations``."""
    return random_subset(len(representations), count, seed)


def random_subset(n: int, count: int, seed: int) -> Tensor:
    """Draw ``count`` different rows of ``n`` at random; int64 [count]."""
    check_count(n, count)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
