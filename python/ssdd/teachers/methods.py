"""Three methods that learn representations without labels. Each is a module around the backbone, with a loss on two
views of a batch and the extra networks that training needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TeacherConfig


def barlow_loss(a: Tensor, b: Tensor, redundancy: float) -> Tensor:
    """Return Σ_i (1 - C_ii)² + redundancy · Σ_{i≠j} C_ij², C the cross-correlation of the projections of two views,
    [N, P]."""
    a = (a - a.mean(0)) / (a.std(0) + 1e-5)
    b = (b - b.mean(0)) / (b.std(0) + 1e-5)
    c = a.T @ b / len(a)
    diagonal = torch.diagonal(c)
    return (1 - diagonal).square().sum() + redundancy * (c.square().sum() - diagonal.square().sum())


def simclr_loss(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss of the projections of two views, [N, P] each.

    Each of the 2N views is classified by its cosines, over ``temperature``, to all 2N - 1 others; the right class is
    the other view of the same image. The result is the mean cross-entropy.
    """
    z = F.normalize(torch.cat([a, b]), dim=1)
    scores = z @ z.T / temperature
    scores.fill_diagonal_(float("-inf"))
    n = len(a)
    return F.cross_entropy(scores, torch.arange(2 * n, device=z.device).roll(n))


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean of 2 - 2 · cosine between predictions and targets of the other view, [N, P] each."""
    return 2 - 2 * F.cosine_similarity(predicted, target, dim=1).mean()


def mlp(dimension: int, width: int) -> nn.Sequential:
    """Build two linear layers with BatchNorm and ReLU between them, for projectors and predictors: [N, dimension] to
    [N, width]."""
    return nn.Sequential(
        nn.Linear(dimension, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width, bias=False)
    )


class BarlowTwins(nn.Module):
    """Makes two views of an image agree, and the coordinates of a representation uncorrelated (Zbontar et al.,
    2021)."""

    def __init__(self, backbone: nn.Module, dimension: int, config: TeacherConfig) -> None:
        super().__init__()
        self.config, self.projector = config, mlp(dimension, config.projector)

    def loss(self, backbone: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
        """Return the loss of normalised images ``views`` [2N, C, H, W]: the first views of all N images, then the
        second ones."""
        a, b = self.projector(backbone(views)).chunk(2)
        return barlow_loss(a, b, self.config.redundancy)

    def after_step(self, backbone: nn.Module, done: float) -> None:
        """Do nothing: only the gradient changes this method's weights."""


class SimCLR(nn.Module):
    """Makes two views of an image more similar than views of different images in the batch (Chen et al., 2020)."""

    def __init__(self, backbone: nn.Module, dimension: int, config: TeacherConfig) -> None:
        super().__init__()
        self.config, self.projector = config, mlp(dimension, config.projector)

    def loss(self, backbone: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
        """Return the loss of normalised images ``views`` [2N, C, H, W]: the first views of all N images, then the
        second ones."""
        a, b = self.projector(backbone(views)).chunk(2)
        return simclr_loss(a, b, self.config.temperature)

    def after_step(self, backbone: nn.Module, done: float) -> None:
        """Do nothing: only the gradient changes this method's weights."""


class BYOL(nn.Module):
    """Predicts, from one view, what a moving average of the network outputs for the other view (Grill et al., 2020)."""

    def __init__(self, backbone: nn.Module, dimension: int, config: TeacherConfig) -> None:
        super().__init__()
        self.config = config
        self.projector, self.predictor = mlp(dimension, config.projector), mlp(config.projector, config.projector)
        self.slow = copy.deepcopy(nn.Sequential(backbone, self.projector)).requires_grad_(False)

    def loss(self, backbone: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
        """Return the loss of normalised images ``views`` [2N, C, H, W]: the first views of all N images, then the
        second ones."""
        predicted = self.predictor(self.projector(backbone(views)))
        with torch.no_grad():
            a, b = self.slow(views).chunk(2)
        return byol_loss(predicted, torch.cat([b, a]))

    @torch.no_grad()
    def after_step(self, backbone: nn.Module, done: float) -> None:
        """Update the moving average. BatchNorm keeps its own statistics.

        Each weight moves by a share of its distance: 1 - ``ema`` at first, falling to 0 along a cosine.

        Args:
            backbone: the network that the gradient trains.
            done: the share of the training's steps that is done, from 0 to 1.
        """
        share = (1 - self.config.ema) * (1 + math.cos(math.pi * done)) / 2
        for slow, fast in zip(
            self.slow.parameters(), [*backbone.parameters(), *self.projector.parameters()], strict=True
        ):
            slow.lerp_(fast, share)


Method = BarlowTwins | SimCLR | BYOL
METHODS: dict[str, type[BarlowTwins] | type[SimCLR] | type[BYOL]] = {
    "barlow-twins": BarlowTwins,
    "simclr": SimCLR,
    "byol": BYOL,
}
