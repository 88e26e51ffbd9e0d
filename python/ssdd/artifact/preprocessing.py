"""The normalisation that a network expects of its images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..config import InputError


def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return one number per channel, as [1, C, 1, 1]."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype, device="cpu").view(1, -1, 1, 1)
    return _channels_there(values, dtype, device)


@lru_cache(maxsize=64)
def _channels_there(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Copying Python numbers to a device synchronises with it. The cache does so once instead of at every step.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device="cpu").view(1, -1, 1, 1).to(device)


@dataclass(frozen=True)
class Preprocessing:
    """The normalisation that a network expects of its images: (pixels in [0, 1] - ``mean``) / ``std``, per channel.

    Args:
        mean: one number per channel, in pixel units of [0, 1].
        std: one positive number per channel, in pixel units of [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                f"Preprocessing: expected one mean and one std per channel, got {self.mean} and {self.std}"
            )
        if not all(0 < s < float("inf") for s in self.std) or not all(map(isfinite, self.mean)):
            raise InputError(
                f"Preprocessing: expected finite means and finite, positive stds, got {self.mean} and {self.std}"
            )

    @classmethod
    def stored(cls, meta: dict[str, Any]) -> Preprocessing:
        """Read the "preprocessing" of a file's metadata. Raises KeyError, TypeError or ValueError if it is damaged."""
        return cls(*(tuple(map(float, meta["preprocessing"][key])) for key in ("mean", "std")))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn pixels in [0, 1], floating point [N, C, H, W], into network input of the same shape."""
        mean, std = (_channels(values, pixels.dtype, pixels.device) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def pixels(self, x: Tensor) -> Tensor:
        """Turn network input [N, C, H, W] into pixels: the inverse of :meth:`normalise`."""
        mean, std = (_channels(values, x.dtype, x.device) for values in (self.mean, self.std))
        return x * std + mean

    def __call__(self, images: Tensor) -> Tensor:
        """Turn stored images, uint8 [N, H, W, C], into network input, float32 [N, C, H, W]."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != len(self.mean):
            raise InputError(
                f"images: expected uint8 [N, H, W, {len(self.mean)}], got {images.dtype} {list(images.shape)}"
            )
        return self.normalise(images.permute(0, 3, 1, 2).to(torch.float32).div(255))
