"""What a selection chooses from, and the check that selections share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import InputError
from ..data import CPU, ImageSet
from ..models import Network


@dataclass(frozen=True)
class Candidates:
    """The training images that a selection chooses from, and what is known of them."""

    representations: Tensor | None
    """g(X_t), float32 [N, D], one row per training image; None for a method that needs no teacher."""
    targets: Tensor
    """What a network learns to give for them, float32 [N, C]: the representations, or the labels one-hot."""
    data: ImageSet
    """The images themselves."""
    make: Callable[[], Network]
    """Returns a network with a new random start and C outputs."""
    device: torch.device = CPU
    """Networks train there."""

    @property
    def points(self) -> Tensor:
        """The representations in float64; an :class:`InputError` if there are none."""
        if self.representations is None:
            raise InputError("initial: this selection needs the teacher's representations of the training images")
        return self.representations.double()


def check_count(n: int, count: int) -> None:
    """Raise :class:`InputError` unless ``count`` different images can be chosen from ``n``."""
    if not 1 <= count <= n:
        raise InputError(f"images: expected between 1 and {n}, the number of training images, got {count}")
