"""Bases: images and targets as sums of principal components (arXiv 2507.21455), so that an image takes few numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...config import DistillConfig
from ._base import Source, Storage
from ._resize import coordinates, enlarge, principal_components, reduced, sample_pixels, shrink


class Bases(Storage):
    """X = enlarge(mean + C_x B_x) and Y = mean + C_y B_y. The coordinates C_x [S, K] and C_y [T S, L] are learned.

    B_x are the principal components of training images at half resolution (``bases.shrink``), B_y those of their
    targets, each as long as the standard deviation along it.
    """

    target_values = ("c_y",)

    @classmethod
    def encode(cls, source: Source, pixels: Tensor, y_s: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        config, (channels, *size) = source.config.bases, pixels.shape[1:]
        low = (reduced(size[0], config.shrink), reduced(size[1], config.shrink))
        known = shrink(sample_pixels(source.data.x_train, source.seed), low).flatten(1)
        x_mean, x_basis = principal_components(known, config.images)
        y_mean, y_basis = principal_components(source.targets.double(), config.targets)
        values = {
            "c_x": coordinates(shrink(pixels.double(), low).flatten(1), x_mean, x_basis).float(),
            "c_y": coordinates(y_s.double(), y_mean, y_basis).float(),
        }
        shape = (-1, channels, *low)
        constants = {
            "x_mean": x_mean.view(shape),
            "x_basis": x_basis.view(shape),
            "y_mean": y_mean,
            "y_basis": y_basis,
        }
        return values, {name: value.float() for name, value in constants.items()}

    @classmethod
    def bytes_of(cls, config: DistillConfig, count: int, shape: Sequence[int], outputs: int, views: int) -> int:
        pixels = shape[0] * reduced(shape[1], config.bases.shrink) * reduced(shape[2], config.bases.shrink)
        k, m = min(config.bases.images, pixels), min(config.bases.targets, outputs)
        return 4 * (count * (k + views * m) + (k + 1) * pixels + (m + 1) * outputs)

    def images(self) -> Tensor:
        low = self.constants["x_mean"] + torch.einsum("sk,kchw->schw", self.values["c_x"], self.constants["x_basis"])
        return enlarge(low, self.size)

    def targets(self) -> Tensor:
        return self.constants["y_mean"] + self.values["c_y"] @ self.constants["y_basis"]


STORAGE = Bases
