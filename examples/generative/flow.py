"""Flow matching with a small convolutional network whose middle layer can be aligned to targets first."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssdd


class Flow(nn.Module):
    """The velocity of a flow from Gaussian noise (t = 0) to images (t = 1).

    Pixels are taken in blocks of 2x2, so that all convolutions run at half the resolution. Sides must be even.

    Args:
        channels: channels of the images.
        targets: numbers per target that the middle layer can be aligned to.
        width: channels of the network.
    """

    def __init__(self, channels: int, targets: int, width: int = 48) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.before = nn.ModuleList(Block(width) for _ in range(2))
        self.after = nn.ModuleList(Block(width) for _ in range(2))
        self.leave = nn.Conv2d(width, 4 * channels, 3, padding=1)
        self.project = nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, targets))

    def middle(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the middle layer [N, width, H/2, W/2] of images [N, C, H, W] at times [N]."""
        x = self.enter(F.pixel_unshuffle(x, 2))
        for block in self.before:
            x = block(x, t)
        return x

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity [N, C, H, W]."""
        x = self.middle(x, t)
        for block in self.after:
            x = block(x, t)
        return F.pixel_shuffle(self.leave(F.silu(x)), 2)


class Block(nn.Module):
    """A residual convolution that knows the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(16, width)
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(-1, 7), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * self.frequencies
        shift = self.time(torch.cat([waves.sin(), waves.cos()], 1))[:, :, None, None]
        return x + self.convolution(F.silu(self.norm(x) + shift))


def between(x: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return a point between noise and each image, its time, and the velocity there."""
    t, noise = torch.rand(len(x), generator=g), torch.randn(x.shape, generator=g)
    at = t[:, None, None, None]
    return (1 - at) * noise + at * x, t, x - noise


def new_flow(channels: int, targets: int, seed: int) -> Flow:
    """Return a flow with the random weights of ``seed``."""
    return ssdd.seeded(lambda: Flow(channels, targets), seed)


def align(flow: Flow, x: Tensor, targets: Tensor, steps: int, seed: int, lr: float = 5e-3) -> None:
    """Train the layers up to the middle so that its mean over positions points to the target of the image.

    Args:
        flow: the network; it is trained in place.
        x: the arm's images, normalised, [S, C, H, W]. The network sees them on their way from noise.
        targets: the arm's targets [S, D]. The loss is 1 - the cosine between prediction and target.
        steps: optimiser steps, with 64 images each (all of them if there are fewer).
        seed: seed of the batches, the times and the noise.
        lr: Adam's learning rate. Default 5e-3.
    """
    parts = (flow.enter, flow.before, flow.project)
    optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], lr=lr)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=g)[:64]
        point, t, _ = between(x[rows], g)
        predicted = flow.project(flow.middle(point, t).mean((2, 3)))
        loss = 1 - F.cosine_similarity(predicted, targets[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fit(flow: Flow, x: Tensor, steps: int, seed: int, lr: float = 5e-3) -> None:
    """Train the whole network by flow matching on normalised images ``x`` [n, C, H, W], with Adam and a cosine to 0.

    Args:
        flow: the network; it is trained in place.
        x: the training images.
        steps: optimiser steps, with 64 images each (all of them if there are fewer).
        seed: seed of the batches, the times and the noise.
        lr: the first learning rate. Default 5e-3.
    """
    optimizer = torch.optim.Adam([p for name, p in flow.named_parameters() if not name.startswith("project")], lr=lr)
    g = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        point, t, velocity = between(x[torch.randperm(len(x), generator=g)[:64]], g)
        loss = F.mse_loss(flow(point, t), velocity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def sample(flow: Flow, shape: tuple[int, ...], steps: int, seed: int) -> Tensor:
    """Return normalised images of ``shape`` [N, C, H, W], by Euler steps from noise of ``seed``."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    parts = []
    for part in x.split(250):
        for i in range(steps):
            part = part + flow(part, torch.full((len(part),), i / steps)) / steps
        parts.append(part)
    return torch.cat(parts)
