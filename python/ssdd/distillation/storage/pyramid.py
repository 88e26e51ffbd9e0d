"""A pyramid: images as sums of several resolutions, in colours that do not vary together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...config import DistillConfig
from ._base import Source, Storage
from ._resize import enlarge, reduced, sample_pixels, shrink


class Pyramid(Storage):
    """X = mean + M sum over l of enlarge(x_l): level l has half the resolution of level l - 1, level 0 the full one.

    M [C, C] is the root of the covariance of the training pixels' colours: what is learned has the identity as
    covariance. With ``pyramid.decorrelate`` off, M is the identity.
    """

    @classmethod
    def encode(cls, source: Source, pixels: Tensor, y_s: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        colours = sample_pixels(source.data.x_train, source.seed).transpose(0, 1).flatten(1)  # [C, N]
        mean = colours.mean(1)
        channels = len(mean)
        matrix = torch.eye(channels, dtype=torch.float64)
        if source.config.pyramid.decorrelate:
            variances, axes = torch.linalg.eigh(torch.cov(colours, correction=0).view(channels, channels))
            deviations = variances.clamp_min(1e-4 * float(variances.max().clamp_min(1e-6))).sqrt()
            matrix = axes * deviations @ axes.mT
        rest = torch.einsum("dc,schw->sdhw", torch.linalg.inv(matrix), pixels.double() - mean.view(-1, 1, 1))
        sizes = level_sizes(source.config.pyramid.levels, pixels.shape[2:])
        values = {}
        for level in reversed(range(len(sizes))):
            values[f"x_{level}"] = shrink(rest, sizes[level])
            rest = rest - enlarge(values[f"x_{level}"], sizes[0])
        values["y_s"] = y_s
        return {name: value.float() for name, value in values.items()}, {"mean": mean.float(), "colour": matrix.float()}

    @classmethod
    def bytes_of(cls, config: DistillConfig, count: int, shape: Sequence[int], outputs: int, views: int) -> int:
        pixels = sum(height * width for height, width in level_sizes(config.pyramid.levels, shape[1:]))
        return 4 * (count * (shape[0] * pixels + views * outputs) + shape[0] * (shape[0] + 1))

    def images(self) -> Tensor:
        names = sorted(self.values.keys() - set(self.target_values))  # a file may hold them in another order
        levels = [self.values[name] for name in names]
        z = torch.stack([enlarge(level, self.size) for level in levels]).sum(0)
        mean = self.constants["mean"].view(-1, 1, 1)
        return mean + torch.einsum("dc,schw->sdhw", self.constants["colour"], z)


def level_sizes(levels: int, size: Sequence[int]) -> list[tuple[int, int]]:
    """Return height and width of each level, the full one first; each is half the one before, down to one pixel."""
    sizes = [(size[0], size[1])]
    while len(sizes) < levels and max(sizes[-1]) > 1:
        sizes.append((reduced(sizes[-1][0], 2), reduced(sizes[-1][1], 2)))
    return sizes


STORAGE = Pyramid
