"""What a selection chooses from, and the check that selections share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import InputError


@dataclass(frozen=True)
class Candidates:
    """The training images that a selection chooses from, and what is known of them."""

    representations: Tensor | None
    """g(X_t), float32 [N, D], one row per training image; None for a method that needs no teacher."""
    targets: Tensor
    """What a network learns to give for them, float32 [N, C]: the representations, or the labels one-hot."""
    labels: Tensor | None
    """Their classes, int64 [N]; None if they have no labels."""
    batch: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Returns (images [n, C, H, W], targets [n, C]) of the rows int64 [n], as a network learns them: the images are
    normalised, and both are on the network's device."""
    network: Callable[[int], nn.Module]
    """Returns a network with C outputs, on its device. The argument is the seed of its random weights."""

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
