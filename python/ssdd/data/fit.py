"""A set beside another one: its images brought to the other's size and channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .sets import ImageSet
from .stream import MEMORY, assembled, chunks, content_key

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as files' readers have them (ITU-R 601)."""


def fitted(data: ImageSet, channels: int, size: tuple[int, int], memory: int = MEMORY) -> ImageSet:
    """Return ``data`` with images of ``channels`` and ``size`` (height, width); the same set if they are so already.

    Bilinear and antialiased; the aspect ratio is not kept. Grey is repeated for colour; colour becomes grey by its
    luma. ``summary`` says what was changed. A part of more than ``memory`` bytes is kept in a file of the cache.
    """
    changes = []
    if data.size != size:
        changes.append(f"resized from {data.size[1]}x{data.size[0]} to {size[1]}x{size[0]}")
    if data.channels != channels:
        changes.append("grey repeated as colour" if channels == 3 else "colour made grey")
    if not changes:
        return data
    x = []
    for part in (data.x_train, data.x_test):
        shape = (len(part), *size, channels)
        key = f"{content_key(part)} {channels} {size}" if int(np.prod(shape)) > memory else ""
        x.append(assembled(shape, _images(part, channels, size), key, memory))
    summary = f"{data.summary or data.name}; {', '.join(changes)}"
    return replace(data, x_train=x[0], x_test=x[1], summary=summary)


def _images(part: Tensor, channels: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    for images in chunks(part, 256):
        yield from resized(images, channels, size).numpy()


def resized(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Return uint8 [N, H, W, C] with other ``channels`` and ``size``."""
    x = images.permute(0, 3, 1, 2).float()
    if x.shape[1] == 3 and channels == 1:
        x = (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if tuple(x.shape[2:]) != size:
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
    x = x.round().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, channels, -1, -1).permute(0, 2, 3, 1).contiguous()
