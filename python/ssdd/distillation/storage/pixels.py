"""Pixels and targets as they are: KRR-ST's storage."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Self

from torch import Tensor

from ...artifact import DistilledSet, versions_per_image
from ...config import DistillConfig
from ._base import Source, Storage


class Pixels(Storage):
    """Every pixel and every number of a target is learned by itself."""

    @classmethod
    def encode(cls, source: Source, pixels: Tensor, y_s: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"x_s": pixels, "y_s": y_s}, {}

    @classmethod
    def bytes_of(cls, config: DistillConfig, count: int, shape: Sequence[int], outputs: int, views: int) -> int:
        return 4 * count * (prod(shape) + views * outputs)

    @classmethod
    def restore(cls, pairs: DistilledSet) -> Self:
        count = len(pairs) // versions_per_image(pairs.storage["transforms"])
        values = {"x_s": pairs.images[:count], "y_s": pairs.targets}
        return cls(values, {}, (pairs.images.shape[2], pairs.images.shape[3]), tuple(values))

    def tensors(self) -> dict[str, Tensor]:
        """Images and targets are all there is."""
        return {}

    def images(self) -> Tensor:
        return self.values["x_s"]


STORAGE = Pixels
