"""What learning costs in realism: how far distilled images are from real ones, in pixels and to networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..data import ImageSet

BATCH = 500
Space = Callable[[Tensor], Tensor]
"""Images as network input [N, C, H, W] -> points [N, D]."""


def measure_realism(
    images: Tensor, start: Tensor, data: ImageSet, spaces: Mapping[str, Space]
) -> dict[str, dict[str, float]]:
    """Measure how far distilled images are from their start and from the nearest real image.

    Args:
        images: distilled images in pixels, float32 [S, C, H, W].
        start: the images that they were learned from, in the same order.
        data: the real images.
        spaces: name -> a network's features, in which distances are measured besides the pixels.

    Returns:
        "pixels" and each name of ``spaces`` -> {"start": the distance to the start, "nearest": to the nearest training
        image}, means over the images. 1 is the root mean squared distance of the training images to their mean.
    """
    normalise = data.preprocessing.normalise
    views: dict[str, Space] = {"pixels": lambda x: data.preprocessing.pixels(x).flatten(1), **spaces}
    found = {}
    for name, view in views.items():
        with torch.no_grad():
            points, first = (view(normalise(x)).double() for x in (images, start))
            real = [view(data.preprocessing(part)).double() for part in data.x_train.split(BATCH)]
        mean = sum(part.sum(0) for part in real) / len(data.x_train)
        spread = (sum(float((part - mean).square().sum()) for part in real) / len(data.x_train)) ** 0.5
        nearest = torch.stack([torch.cdist(points, part).min(1).values for part in real]).min(0).values
        found[name] = {
            "start": float((points - first).norm(dim=1).mean()) / max(spread, 1e-12),
            "nearest": float(nearest.mean()) / max(spread, 1e-12),
        }
    return found
