"""Changes of resolution as matrix products, so that their gradients are the same bits on every run of a GPU."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE = 4096
"""Training images, at most, that a basis or a covariance is computed from."""


def reduced(side: int, divisor: int) -> int:
    """Return ``side`` pixels divided by ``divisor``, rounded up."""
    return -(-side // divisor)


def shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images [N, C, H, W] at a smaller ``size``: means over areas."""
    return F.interpolate(x, size=size, mode="area")


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images [N, C, h, w] at a larger ``size``, bilinear; differentiable."""
    if x.shape[2:] == size:
        return x
    down, across = (_matrix(a, b, x.dtype, x.device) for a, b in zip(x.shape[2:], size, strict=True))
    return down @ x @ across.mT


@lru_cache(maxsize=64)
def _matrix(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix [after, before] of linear interpolation between the centres of pixels, sent to ``device`` once."""
    with torch.inference_mode(False):
        unit = torch.eye(before, dtype=torch.float64)[None]
        return F.interpolate(unit, size=after, mode="linear", align_corners=False)[0].mT.contiguous().to(device, dtype)


def sample_pixels(x_train: Tensor, seed: int) -> Tensor:
    """Return at most ``SAMPLE`` random training images [N, H, W, C] as pixels in [0, 1], float64 [n, C, H, W]."""
    rows = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    return x_train[rows].permute(0, 3, 1, 2).double().div(255)


def principal_components(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean [D] of ``points`` [n, D] and their first ``count`` principal components [count, D], float64.

    The components are as long as the standard deviation along them. Each has a positive largest number.
    """
    mean = points.mean(0)
    centred = points - mean
    if centred.shape[0] < centred.shape[1]:  # the smaller of both Gram matrices has all that is needed
        lengths, left = torch.linalg.eigh(centred @ centred.mT / len(points))
        order = lengths.argsort(descending=True)[:count]
        components = left[:, order].mT @ centred / len(points) ** 0.5
    else:
        lengths, right = torch.linalg.eigh(centred.mT @ centred / len(points))
        order = lengths.argsort(descending=True)[:count]
        components = right[:, order].mT * lengths[order].clamp_min(0).sqrt()[:, None]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return mean, components * torch.where(largest < 0, -1.0, 1.0)


def coordinates(points: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """Return the coordinates [n, K] of ``points`` [n, D] along the ``components`` [K, D] of their space."""
    squares = components.square().sum(1)
    return (points - mean) @ components.mT / squares.clamp_min(1e-12 * float(squares.max().clamp_min(1e-30)))
