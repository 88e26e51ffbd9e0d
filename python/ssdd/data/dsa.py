"""DSA: one differentiable operation for a whole batch (Zhao and Bilen, ICML 2021), with its published ranges.

What was drawn is a value of its own, in main memory, so that a real and a distilled batch can go through the same
operation. Pixels from outside an image are 0: black for pixels, the mean for a network's input.
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
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
"""Range of what is added to all pixels; largest factor on the distance from grey; half the range of the factor, around
1, on the distance from the image's mean."""
CROP, CUTOUT = 0.125, 0.5
"""Largest shift, and side of the rectangle that is cut out, as fractions of the image's side."""
FLIP = 0.5
"""Probability of a left-right flip."""
SCALE, DEGREES = 1.2, 15.0
"""Largest change of size, as a factor per axis; largest rotation."""


@dataclass(frozen=True)
class Dsa:
    """An operation with its numbers: uniform in [0, 1), [n, 3]; one row per image, or one row for all images alike."""

    operation: str
    numbers: Tensor


def draw_dsa(generator: torch.Generator, n: int = 1, operations: tuple[str, ...] = DSA_OPERATIONS) -> Dsa:
    """Draw one of ``operations``, each with the same probability, for ``n`` images.

    Args:
        generator: a generator in main memory.
        n: the number of images, which get numbers of their own. Default 1: the same numbers for all images.
        operations: the operations to draw from. Default: all six.
    """
    which = int(torch.randint(0, len(operations), (), generator=generator))
    return Dsa(operations[which], torch.rand(n, 3, generator=generator))


def apply_dsa(x: Tensor, drawn: Dsa) -> Tensor:
    """Apply the operation to images x [N, C, H, W], on any device. The result has the same shape; it is differentiable.

    ``drawn``: with n = 1 or n = N rows of numbers.
    """
    u = drawn.numbers.expand(len(x), 3)
    return _OPERATIONS[drawn.operation](x, u)


def _colour(x: Tensor, u: Tensor) -> Tensor:
    """Add brightness, then change the distance from grey (saturation), then that from the image's mean (contrast)."""
    brightness, saturation, contrast = to_device(u, x.device).to(x.dtype).view(-1, 3, 1, 1, 1).unbind(1)
    x = x + (brightness - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (saturation * SATURATION) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + CONTRAST) + mean


def _crop(x: Tensor, u: Tensor) -> Tensor:
    shifts = [int(side * CROP + 0.5) for side in x.shape[2:]]
    pad = max(shifts)
    top, left = (pad - shift + _whole(u[:, i], 2 * shift + 1) for i, shift in enumerate(shifts))
    return crop(x, pad, (top, left, torch.zeros(len(x), dtype=torch.bool)))


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """Set a rectangle to 0. Its middle is anywhere in the image, so that a part of it may be outside."""
    inside = []
    for i, side in enumerate(x.shape[2:]):
        cut = int(side * CUTOUT + 0.5)
        first = _whole(u[:, i], side + 1 - cut % 2) - cut // 2
        at = torch.arange(side)
        inside.append((at >= first[:, None]) & (at < first[:, None] + cut))
    keep = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return x * to_device(keep.to(x.dtype), x.device)


def _flip(x: Tensor, u: Tensor) -> Tensor:
    flipped = to_device(u[:, 0] < FLIP, x.device).view(-1, 1, 1, 1)
    return torch.where(flipped, x.flip(3), x)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    size = u[:, :2] * (SCALE - 1 / SCALE) + 1 / SCALE
    return _affine(x, size[:, 0], torch.zeros(len(x)), torch.zeros(len(x)), size[:, 1])


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = (u[:, 0] - 0.5) * 2 * math.radians(DEGREES)
    return _affine(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _whole(u: Tensor, count: int) -> Tensor:
    """Return whole numbers 0..count-1, int64, for numbers in [0, 1). The product may round up to ``count``."""
    return (u * count).floor().clamp_max(count - 1).to(torch.int64)


def _affine(x: Tensor, *entries: Tensor) -> Tensor:
    """Sample x at other places, bilinearly.

    ``entries``: the 2x2 matrix that takes places in the new image to places in the old one, row by row. Coordinates
    are -1 and 1 at the centres of the corner pixels, as in the published code, which ran on torch 1.2.
    """
    theta = F.pad(torch.stack(entries, -1).view(-1, 2, 2), (0, 1))
    grid = F.affine_grid(to_device(theta, x.device).to(x.dtype), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


_OPERATIONS = {
    "colour": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
