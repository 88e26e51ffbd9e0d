"""One form for every source of images: :class:`ImageSet`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..artifact import Preprocessing
from ..config import InputError

HELD_OUT = 0.2
"""Share of the images held out for testing where the source has no test images of its own."""


@dataclass(frozen=True)
class ImageSet:
    """Training and held-out images, uint8 [N, H, W, C], with int64 labels [N] where the source has them.

    ``rows_train`` and ``rows_test`` say which row of the source (training images first, then its test images) each
    image was, so that representations computed elsewhere, in the source's order, can be matched.
    """

    name: str
    x_train: Tensor
    x_test: Tensor
    y_train: Tensor | None = None
    y_test: Tensor | None = None
    rows_train: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    rows_test: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[-1] not in (1, 3):
                raise InputError(
                    f"{self.name}: x_{part}: expected uint8 [N, H, W, 1 or 3], got {x.dtype} {list(x.shape)}"
                )
            if len(x) == 0:
                raise InputError(f"{self.name}: x_{part}: expected at least one image, got none")
            if y is not None and (y.dim() != 1 or len(y) != len(x) or y.dtype != torch.int64):
                raise InputError(f"{self.name}: y_{part}: expected int64 [{len(x)}], got {y.dtype} {list(y.shape)}")
            if y is not None and int(y.min()) < 0:
                raise InputError(f"{self.name}: y_{part}: expected labels from 0, got {int(y.min())}")
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise InputError(
                f"{self.name}: x_test: expected images of {list(self.x_train.shape[1:])} as in x_train, "
                f"got {list(self.x_test.shape[1:])}"
            )
        if not len(self.rows_train):
            n, q = len(self.x_train), len(self.x_test)
            object.__setattr__(self, "rows_train", torch.arange(n))
            object.__setattr__(self, "rows_test", torch.arange(n, n + q))

    @property
    def channels(self) -> int:
        return int(self.x_train.shape[3])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.x_train.shape[1]), int(self.x_train.shape[2])

    @property
    def classes(self) -> int:
        """Number of classes; 0 where there are no labels."""
        return 0 if self.y_train is None else int(self.y_train.max()) + 1

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Mean and standard deviation of the training pixels, channel by channel."""
        pixels = self.x_train.reshape(-1, self.channels)
        # Moments of 256 counts: exact, and no float copy of a large set.
        mean, std = [], []
        levels = torch.arange(256, dtype=torch.float64) / 255
        for channel in range(self.channels):
            share = torch.bincount(pixels[:, channel], minlength=256).double() / len(pixels)
            m = float((share * levels).sum())
            mean.append(m)
            std.append(max(float((share * (levels - m) ** 2).sum()) ** 0.5, 1e-3))
        return Preprocessing(tuple(mean), tuple(std))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images: the part of a cache key that says "these data"."""
        digest = hashlib.sha256()
        for x in (self.x_train, self.x_test):
            digest.update(str(tuple(x.shape)).encode())
            digest.update(x.contiguous().numpy().tobytes())
        return digest.hexdigest()


def hold_out(name: str, images: Tensor, labels: Tensor | None, count: int | None = None) -> ImageSet:
    """Split images without a test part of their own: a fixed draw of ``count`` (default: one in five) is held out."""
    n = len(images)
    count = max(1, round(n * HELD_OUT)) if count is None else count
    if n < 2 or count >= n:
        raise InputError(f"{name}: expected at least two images, to hold one out for testing, got {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    test, train = order[:count].sort().values, order[count:].sort().values
    return ImageSet(
        name=name,
        x_train=images[train],
        x_test=images[test],
        y_train=None if labels is None else labels[train],
        y_test=None if labels is None else labels[test],
        rows_train=train,
        rows_test=test,
    )
