"""The compact form of a file: 8 bits per pixel, 16 per number of a target, and no copies by fixed transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import InputError
from .transforms import TRANSFORMS, check_transforms, transformed, versions_per_image

LEVELS = 255
"""The largest stored value of a pixel."""
LARGEST_LOSS = 1e-6
"""Targets are stored with 16 bits per number if that changes them by at most this fraction of their variance."""


def pack(images: Tensor, targets: Tensor, transforms: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a compact file, and what :func:`unpack` must know of them, as JSON values.

    A pixel is ``low + stored / scale``, with a low and a scale per image and channel. They span the values that are
    there, or [0, 1] if all values are inside: pixels of real images, multiples of 1/255, are then stored exactly.

    Args:
        images: float32 [T S, C, H, W], all versions of every image, the images themselves first.
        targets: float32 [T S, D].
        transforms: name of the fixed transforms. If the versions are not exactly these, all of them are stored.

    Raises:
        InputError: if a pixel is not finite, or if the values of a channel are too far apart for float32.
    """
    count = len(images) // versions_per_image(transforms)
    if not torch.equal(transformed(transforms, images[:count]), images):
        count, transforms = len(images), "none"
    x = images[:count]
    low, high = x.amin((2, 3)), x.amax((2, 3))
    if not bool((high - low).isfinite().all()):
        raise InputError("images: values that are not finite, or too far apart for float32")
    inside = (low >= 0) & (high <= 1)
    low, scale = low.masked_fill(inside, 0.0), (LEVELS / (high - low)).masked_fill(inside, LEVELS)
    scale = scale.masked_fill(~scale.isfinite(), 1.0)  # all values of the channel are equal, or nearly so
    stored = ((x - low[..., None, None]) * scale[..., None, None]).round().clamp(0, LEVELS).to(torch.uint8)
    tensors = {"images": stored, "images.low": low, "images.scale": scale, "targets": _shortened(targets)}
    return tensors, {"transforms": transforms}


def _shortened(targets: Tensor) -> Tensor:
    """Return the targets as float16, or as they are if that loses too much."""
    short = targets.to(torch.float16)
    lost = (short.double() - targets.double()).square().sum()
    variance = (targets.double() - targets.double().mean(0)).square().sum()
    return short if bool(lost <= LARGEST_LOSS * variance) else targets


def unpack(tensors: dict[str, Tensor], about: Any) -> tuple[Tensor, Tensor]:
    """Return images and targets of a compact file, float32, all versions of every image included.

    Raises:
        InputError: if the tensors are not those that :func:`pack` returns.
    """
    name = about.get("transforms") if isinstance(about, dict) else None
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise InputError(f"compact: expected transforms of {', '.join(TRANSFORMS)}, got {about!r}")
    stored, low, scale = (tensors.get(key) for key in ("images", "images.low", "images.scale"))
    if stored is None or low is None or scale is None:
        raise InputError("the file lacks images, images.low or images.scale")
    if stored.dtype != torch.uint8 or stored.dim() != 4:
        raise InputError(f"images: expected uint8 [S, C, H, W], got {stored.dtype} {list(stored.shape)}")
    for key, value in (("images.low", low), ("images.scale", scale)):
        if value.dtype != torch.float32 or value.shape != stored.shape[:2]:
            expected = f"float32 {list(stored.shape[:2])}"
            raise InputError(f"{key}: expected {expected}, got {value.dtype} {list(value.shape)}")
    check_transforms(name, (stored.shape[2], stored.shape[3]))
    images = low[..., None, None] + stored.float() / scale[..., None, None]
    return transformed(name, images), tensors["targets"].float()
