"""Bases: images and targets as sums of principal components (arXiv 2507.21455), so that an image takes few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...config import DistillConfig
from ._base import Source, Storage
from ._resize import coordinates, enlarge, principal_components, reduced, sample_pixels, shrink


class Bases(Storage):
    """X = enlarge(mean + C_x B_x) and Y = mean + C_y B_y. The coordinates C_x [S, K] and C_y [T S, L] are learned.

    B_x are the principal components of training images at half resolution (``bases.shrink``), B_y those of their
    targets, each as long as the standard deviation along it.

    With ``bases.hidden``, C_y [S, L] are those of the images as they are, and a network of one hidden layer predicts
    those of their T - 1 transformed versions: C_y + relu(C_y W_in + b_in) W_out + b_out.
    """

    target_values = ("c_y", "w_in", "b_in", "w_out", "b_out")

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
        if config.hidden and len(y_s) > len(pixels):
            own, others = values["c_y"].split([len(pixels), len(y_s) - len(pixels)])
            values |= {"c_y": own, **_fit_predictor(own, others, config.hidden, source.seed)}
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
        hidden = config.bases.hidden if views > 1 else 0
        predictor = hidden * (m + 1) + (hidden + 1) * (views - 1) * m if hidden else 0
        own = 1 if hidden else views
        return 4 * (count * (k + own * m) + predictor + (k + 1) * pixels + (m + 1) * outputs)

    def images(self) -> Tensor:
        low = self.constants["x_mean"] + torch.einsum("sk,kchw->schw", self.values["c_x"], self.constants["x_basis"])
        return enlarge(low, self.size)

    def targets(self) -> Tensor:
        c_y = self.values["c_y"]
        if "w_out" in self.values:
            c_y = torch.cat([c_y, *_predict(c_y, self.values)])
        return self.constants["y_mean"] + c_y @ self.constants["y_basis"]


def _predict(c_y: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the coordinates [S, L] of each transformed version, from those of the images as they are."""
    moved = torch.relu(c_y @ values["w_in"] + values["b_in"]) @ values["w_out"] + values["b_out"]
    return tuple(c_y + part for part in moved.split(c_y.shape[1], dim=1))


def _fit_predictor(c_y: Tensor, others: Tensor, hidden: int, seed: int) -> dict[str, Tensor]:
    """Return a network that begins near ``others`` [(T - 1) S, L]: random hidden units, and the least-squares fit of
    the last layer with a small ridge."""
    g = torch.Generator().manual_seed(seed)
    length = c_y.shape[1]
    w_in = torch.randn(length, hidden, generator=g) / length**0.5
    b_in = torch.randn(hidden, generator=g)
    moved = torch.cat([part - c_y for part in others.split(len(c_y))], dim=1).double()
    units = torch.relu(c_y @ w_in + b_in).double()
    mean, centre = moved.mean(0), units.mean(0)
    gram = (units - centre).mT @ (units - centre)
    gram += (1e-3 * gram.trace() / hidden + 1e-12) * torch.eye(hidden, dtype=torch.float64)
    w_out = torch.linalg.solve(gram, (units - centre).mT @ (moved - mean))
    return {"w_in": w_in, "b_in": b_in, "w_out": w_out.float(), "b_out": (mean - centre @ w_out).float()}


STORAGE = Bases
