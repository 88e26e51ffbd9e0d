"""Barlow Twins (Zbontar et al., 2021): two views of an image should agree, and the coordinates should not repeat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import Diverged, InputError, Report, TeacherConfig, silent
from ..data import ImageSet, augment
from ..models import ConvNet, seeded
from .teacher import Teacher


def barlow_loss(a: Tensor, b: Tensor, redundancy: float) -> Tensor:
    """Projections of two views, [N, P] each -> Σ_i (1 - C_ii)² + redundancy · Σ_{i≠j} C_ij², C their correlation."""
    a = (a - a.mean(0)) / (a.std(0) + 1e-5)
    b = (b - b.mean(0)) / (b.std(0) + 1e-5)
    c = a.T @ b / len(a)
    diagonal = torch.diagonal(c)
    return (1 - diagonal).square().sum() + redundancy * (c.square().sum() - diagonal.square().sum())


def _projector(dimension: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dimension, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width, bias=False)
    )


def train_teacher(data: ImageSet, config: TeacherConfig, report: Report = silent) -> Teacher:
    """Train a ConvNet on the training images alone, without labels.

    Reports ``{"event": "teacher", "step", "steps", "loss"}`` once an epoch. Deterministic for one seed, machine and
    number of threads. Raises :class:`Diverged` where the loss stops being finite.
    """
    n = len(data.x_train)
    if n < 4:
        raise InputError(f"data: expected at least 4 training images for a teacher, got {n}")
    backbone = seeded(lambda: ConvNet(data.channels, data.size, config.widths, pooled=True), config.seed)
    projector = seeded(lambda: _projector(backbone.dimension, config.projector), config.seed + 1)
    g = torch.Generator().manual_seed(config.seed)
    parameters = [*backbone.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=config.weight_decay)
    batch = min(config.batch, n)
    per_epoch = n // batch  # the incomplete batch of an epoch is dropped: the correlation is taken over a batch
    steps = config.epochs * per_epoch
    step = 0
    for _ in range(config.epochs):
        order = torch.randperm(n, generator=g)
        total = torch.zeros(())
        for i in range(per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = config.rate * _schedule(step / steps)
            pixels = data.x_train[order[i * batch : (i + 1) * batch]].permute(0, 3, 1, 2).float().div(255)
            views = torch.cat([augment(pixels, config.augment, g) for _ in range(2)])
            z = projector(backbone(data.preprocessing.normalise(views)))
            loss = barlow_loss(z[:batch], z[batch:], config.redundancy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            step += 1
        mean = float(total) / per_epoch
        if not math.isfinite(mean):
            raise Diverged(f"teacher: the loss is {mean} at step {step}; try a smaller teacher.rate ({config.rate})")
        report({"event": "teacher", "step": step, "steps": steps, "loss": mean})
    about = {"widths": list(config.widths), "channels": data.channels, "size": list(data.size), "data": data.name}
    return Teacher(backbone, data.preprocessing, about)


def _schedule(done: float) -> float:
    """Share of the rate after the fraction ``done`` of the steps: warm-up over one tenth, then cosine to 0."""
    return done / 0.1 if done < 0.1 else 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))
