"""What a kind of storage is: learned values, and the images and targets that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...artifact import DistilledSet
from ...config import DistillConfig
from ...data import ImageSet, to_device


@dataclass(frozen=True)
class Source:
    """What a storage is made from."""

    config: DistillConfig
    data: ImageSet
    targets: Tensor
    """Of all training images, float32 [N, C]."""
    seed: int


class Storage:
    """Learned values and the images and targets that follow from them. This class keeps targets as they are.

    ``values``: what changes while a set is distilled. ``constants``: what is computed once from the training images.
    ``size``: height and width of the images. ``fixed``: the names of values that are not learned.
    """

    target_values: ClassVar[tuple[str, ...]] = ("y_s",)
    """Names of the values that the targets follow from."""

    def __init__(
        self,
        values: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        size: tuple[int, int],
        fixed: Sequence[str],
    ) -> None:
        self.values, self.constants = dict(values), dict(constants)
        self.size, self.fixed = size, tuple(fixed)

    @classmethod
    def make(cls, source: Source, pixels: Tensor, y_s: Tensor, learns_targets: bool, device: torch.device) -> Self:
        """Return the storage on ``device`` whose images are nearest to ``pixels`` [S, C, H, W] and whose targets are
        nearest to ``y_s`` [T S, C]."""
        values, constants = cls.encode(source, pixels, y_s)
        fixed = () if learns_targets else cls.target_values
        there = {name: to_device(value, device).requires_grad_(name not in fixed) for name, value in values.items()}
        known = {name: to_device(value, device) for name, value in constants.items()}
        return cls(there, known, (pixels.shape[2], pixels.shape[3]), fixed)

    @classmethod
    def restore(cls, pairs: DistilledSet) -> Self:
        """Return the storage that ``pairs`` holds; nothing in it can be learned."""
        values, constants = (
            {name.removeprefix(part): value for name, value in pairs.stored.items() if name.startswith(part)}
            for part in ("values.", "constants.")
        )
        return cls(values, constants, (pairs.images.shape[2], pairs.images.shape[3]), tuple(values))

    def tensors(self) -> dict[str, Tensor]:
        """Return what an artifact holds beside images and targets, so that :meth:`restore` can be called."""
        found = {f"values.{name}": value for name, value in self.values.items()}
        return found | {f"constants.{name}": value for name, value in self.constants.items()}

    @classmethod
    def encode(cls, source: Source, pixels: Tensor, y_s: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the values and constants for images near ``pixels`` and targets near ``y_s``, in main memory."""
        raise NotImplementedError

    @classmethod
    def bytes_of(cls, config: DistillConfig, count: int, shape: Sequence[int], outputs: int, views: int) -> int:
        """Return the bytes that ``count`` images of ``shape`` (channels, height, width) take, with all that is needed
        to resolve them, at four bytes a number. ``views``: targets per image, of ``outputs`` numbers."""
        raise NotImplementedError

    def images(self) -> Tensor:
        """Return X_s in pixels, [S, C, H, W]; differentiable."""
        raise NotImplementedError

    def targets(self) -> Tensor:
        """Return Y_s, [T S, C]; differentiable."""
        return self.values["y_s"]

    def parameters(self) -> dict[str, Tensor]:
        """Return what is learned: name -> leaf tensor."""
        return {name: value for name, value in self.values.items() if name not in self.fixed}

    def holding(self, values: Sequence[Tensor]) -> Self:
        """Return a storage with other ``values``, in the order of ``self.values``, that cannot be learned."""
        return type(self)(dict(zip(self.values, values, strict=True)), self.constants, self.size, tuple(self.values))

    @property
    def bytes(self) -> int:
        """The bytes of all values and constants."""
        return sum(x.numel() * x.element_size() for x in (*self.values.values(), *self.constants.values()))
