"""What a network expects of an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..config import InputError


def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One number a channel, [1, C, 1, 1]."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)
    return _channels_there(values, dtype, device)


@lru_cache(maxsize=64)
def _channels_there(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Sending Python's numbers makes the host wait for the device: once, not at every step.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1).to(device)


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image: pixels in [0, 1], minus ``mean``, divided by ``std``, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(f"Preprocessing: expected one mean and one std a channel, got {self.mean} and {self.std}")
        if not all(0 < s < float("inf") for s in self.std) or not all(map(isfinite, self.mean)):
            raise InputError(
                f"Preprocessing: expected finite means and finite, positive stds, got {self.mean} and {self.std}"
            )

    @classmethod
    def stored(cls, meta: dict[str, Any]) -> Preprocessing:
        """What a file's metadata holds under "preprocessing"; KeyError, TypeError or ValueError where it is damaged."""
        return cls(*(tuple(map(float, meta["preprocessing"][key])) for key in ("mean", "std")))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [N, C, H, W] in [0, 1], floating point -> network input of the same shape."""
        mean, std = (_channels(values, pixels.dtype, pixels.device) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def pixels(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        mean, std = (_channels(values, x.dtype, x.device) for values in (self.mean, self.std))
        return x * std + mean

    def __call__(self, images: Tensor) -> Tensor:
        """Stored images, uint8 [N, H, W, C] -> network input, float32 [N, C, H, W]."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != len(self.mean):
            raise InputError(
                f"images: expected uint8 [N, H, W, {len(self.mean)}], got {images.dtype} {list(images.shape)}"
            )
        return self.normalise(images.permute(0, 3, 1, 2).to(torch.float32).div(255))
