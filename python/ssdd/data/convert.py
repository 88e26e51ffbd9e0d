"""Converting the images of a set to another size and other channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .sets import ImageSet
from .stream import MEMORY, assemble, chunks, content_key

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as in image libraries (ITU-R 601)."""


def convert_images(data: ImageSet, channels: int, size: tuple[int, int], memory: int = MEMORY) -> ImageSet:
    """Return ``data`` with images of another size and other channels; the same set if there is nothing to convert.

    Resizing is bilinear and antialiased, and does not keep the aspect ratio. Grey is repeated for colour; colour
    becomes grey by its luma.

    Args:
        data: the images.
        channels: 1 or 3.
        size: (height, width) in pixels.
        memory: bytes; a larger part of the set is kept in a file of the cache. Default 4 GiB.

    Returns:
        The set; ``summary`` says what was changed.
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
        x.append(assemble(shape, _images(part, channels, size), key, memory))
    summary = f"{data.summary or data.name}; {', '.join(changes)}"
    return replace(data, x_train=x[0], x_test=x[1], summary=summary)


def _images(part: Tensor, channels: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    for images in chunks(part, 256):
        yield from _convert(images, channels, size).numpy()


def _convert(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Return uint8 [N, H, W, C] with other ``channels`` and ``size``."""
    x = images.permute(0, 3, 1, 2).float()
    if x.shape[1] == 3 and channels == 1:
        x = (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if tuple(x.shape[2:]) != size:
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
    x = x.round().clamp(0, 255).to(torch.uint8)
    return x.expand(-1, channels, -1, -1).permute(0, 2, 3, 1).contiguous()
