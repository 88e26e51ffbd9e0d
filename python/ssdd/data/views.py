"""Random views of image batches, drawn per image and computed for the whole batch at once.

Every function takes pixels in [0, 1], float [N, C, H, W], on any device, and a generator in main memory. It returns new
pixels of the same shape on that device. Only the few numbers drawn per image are copied to the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AugmentConfig
from .device import to_device


def _uniform(n: int, low: float, high: float, g: torch.Generator) -> Tensor:
    return torch.rand(n, generator=g) * (high - low) + low


def augment(pixels: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return one random view per image: shift, rotation, size, flip; then brightness, contrast, colour, noise.

    pixels: float [N, C, H, W] in [0, 1]; the result has the same shape. Pixels from outside the image repeat its
    border.
    """
    n, channels = pixels.shape[:2]
    g = generator
    angle = _uniform(n, -config.rotate, config.rotate, g).deg2rad()
    size = 1 + _uniform(n, -config.scale, config.scale, g)
    mirror = torch.where(torch.rand(n, generator=g) < config.flip, -1.0, 1.0)
    shift = 2 * torch.stack([_uniform(n, -config.shift, config.shift, g) for _ in range(2)], -1)
    cos, sin = angle.cos() / size, angle.sin() / size
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], -1).view(n, 2, 3)
    grid = F.affine_grid(to_device(theta, pixels.device).to(pixels.dtype), list(pixels.shape), align_corners=False)
    x = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def each(low: float, high: float) -> Tensor:
        return to_device(_uniform(n, low, high, g), pixels.device).to(pixels.dtype).view(n, 1, 1, 1)

    if channels == 3 and (config.saturation or config.grayscale):
        luma = to_device(torch.tensor([0.299, 0.587, 0.114]), x.device).to(x.dtype)
        grey = (x * luma.view(1, 3, 1, 1)).sum(1, keepdim=True)
        keep = each(1 - config.saturation, 1 + config.saturation)
        keep = torch.where(each(0, 1) < config.grayscale, torch.zeros_like(keep), keep)
        x = grey + (x - grey) * keep
    if config.contrast:
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * each(1 - config.contrast, 1 + config.contrast)
    if config.brightness:
        x = x + each(-config.brightness, config.brightness)
    if config.noise:
        x = x + config.noise * to_device(torch.randn(x.shape, generator=g), x.device).to(x.dtype)
    return x


Crops = tuple[Tensor, Tensor, Tensor]
"""Rows and columns that each image's window is moved by, and whether it is flipped; [N] each, in main memory."""


def draw_crops(n: int, pad: int, generator: torch.Generator) -> Crops:
    """Draw the crops of ``n`` images after padding by ``pad``; each is flipped with probability one half."""
    top = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator)
    return top[:, 0], left[:, 0], torch.rand(n, 1, generator=generator)[:, 0] < 0.5


def crop(pixels: Tensor, pad: int, crops: Crops) -> Tensor:
    """Pad [N, C, H, W] by ``pad`` black pixels, crop to the old size at the drawn place, and flip."""
    n, _, height, width = pixels.shape
    top, left, flip = (drawn[:, None] for drawn in crops)
    padded = F.pad(pixels, (pad, pad, pad, pad))
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    image = torch.arange(n, device=pixels.device).view(n, 1, 1)
    rows, columns = to_device(rows, pixels.device), to_device(columns, pixels.device)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def crop_and_flip(pixels: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Apply random crops to [N, C, H, W]: the published code's view of a real batch."""
    return crop(pixels, pad, draw_crops(len(pixels), pad, generator))
