"""DSA: one differentiable operation for a whole batch (Zhao and Bilen, ICML 2021), with its published ranges.

What was drawn is a value of its own, so that a real and a distilled batch can go through the same operation, and is
in main memory. Images are a network's input, so that black (0) is the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import to_device
from .views import crop

DSA_OPERATIONS = ("colour", "crop", "cutout", "flip", "scale", "rotate")
CROP, CUTOUT, SCALE, DEGREES = 0.125, 0.5, 1.2, 15.0
"""Largest shift and side of the cut-out square, as fractions of the image side; largest change of size; rotation."""


@dataclass(frozen=True)
class Dsa:
    """An operation with its numbers: uniform in [0, 1), [n, 3]; one row per image, or one row for all images alike."""

    operation: str
    numbers: Tensor


def draw_dsa(generator: torch.Generator, n: int = 1, operations: tuple[str, ...] = DSA_OPERATIONS) -> Dsa:
    """One of ``operations``, each with the same probability, for ``n`` images (1: the same numbers for all images)."""
    which = int(torch.randint(0, len(operations), (), generator=generator))
    return Dsa(operations[which], torch.rand(n, 3, generator=generator))


def apply_dsa(x: Tensor, drawn: Dsa) -> Tensor:
    """The images x [N, C, H, W] after the operation; same shape, differentiable. ``drawn``: n = 1 or n = N."""
    u = drawn.numbers.expand(len(x), 3)
    return _OPERATIONS[drawn.operation](x, u)


def _colour(x: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = to_device(u, x.device).to(x.dtype).view(-1, 3, 1, 1, 1).unbind(1)
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _crop(x: Tensor, u: Tensor) -> Tensor:
    shifts = [int(side * CROP + 0.5) for side in x.shape[2:]]
    pad = max(shifts)
    top, left = (
        (pad - s + (u[:, i] * (2 * s + 1)).floor().clamp_max(2 * s)).to(torch.int64) for i, s in enumerate(shifts)
    )
    return crop(x, pad, (top, left, torch.zeros(len(x), dtype=torch.bool)))


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    inside = []
    for i, side in enumerate(x.shape[2:]):
        cut = int(side * CUTOUT + 0.5)
        first = (u[:, i] * (side + 1 - cut % 2)).floor() - cut // 2
        at = torch.arange(side)
        inside.append((at >= first[:, None]) & (at < first[:, None] + cut))
    keep = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return x * to_device(keep.to(x.dtype), x.device)


def _flip(x: Tensor, u: Tensor) -> Tensor:
    flipped = to_device((u[:, 0] < 0.5).to(x.dtype), x.device).view(-1, 1, 1, 1)
    return flipped * x.flip(3) + (1 - flipped) * x


def _scale(x: Tensor, u: Tensor) -> Tensor:
    size = u[:, :2] * (SCALE - 1 / SCALE) + 1 / SCALE
    return _affine(x, size[:, 0], torch.zeros(len(x)), torch.zeros(len(x)), size[:, 1])


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = (u[:, 0] - 0.5) * 2 * math.radians(DEGREES)
    return _affine(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _affine(x: Tensor, *entries: Tensor) -> Tensor:
    """``entries``: the 2x2 matrix that takes places in the new image to places in the old one, row by row."""
    theta = F.pad(torch.stack(entries, -1).view(-1, 2, 2), (0, 1))
    grid = F.affine_grid(to_device(theta, x.device).to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


_OPERATIONS = {
    "colour": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
