"""Pictures: contact sheet, images over the steps, loss curves, coverage of the teacher's representations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import InputError

MAX_SIDE = 64
"""Pixels a side that small images are enlarged towards, by whole factors, so that pixels stay pixels."""


def _tiles(images: Tensor, columns: int, gap: int = 2) -> Any:
    """A PIL image of a grid. images: float [N, C, H, W] in pixels; what leaves [0, 1] is cut off."""
    from PIL import Image

    n, c, h, w = images.shape
    if n == 0 or c not in (1, 3):
        raise InputError(f"images: expected [N, 1 or 3, H, W] with N at least 1, got {list(images.shape)}")
    zoom = max(1, MAX_SIDE // max(h, w))
    pixels = images.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    h, w, rows = h * zoom, w * zoom, math.ceil(n / columns)
    sheet = torch.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 255, dtype=torch.uint8)
    for i in range(n):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[:, top : top + h, left : left + w] = pixels[i]
    array = sheet.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if c == 1 else array)


def contact_sheet(images: Tensor, path: str | os.PathLike[str], columns: int | None = None) -> None:
    """Write all images, float [N, C, H, W] in pixels, as one PNG."""
    _tiles(images, columns or min(25, math.ceil(math.sqrt(2 * len(images))))).save(path, format="PNG")


def images_over_steps(snapshots: Mapping[int, Tensor], path: str | os.PathLike[str], count: int = 13) -> None:
    """Write a PNG with one row a moment (first to last outer step), the first ``count`` images as columns."""
    from matplotlib.figure import Figure

    moments = sorted(snapshots)
    columns = min(count, len(snapshots[moments[0]]))
    rows = [_tiles(snapshots[step][:columns], columns) for step in moments]
    width, height = rows[0].size
    figure = Figure(figsize=(9, 0.35 + 9 * len(rows) * height / width))
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row, step in zip(axes, rows, moments, strict=True):
        axis.imshow(row, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_ylabel(f"{step:,}", rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0].set_title("Distilled images after so many outer steps (first row: the real images they start from)")
    figure.tight_layout(h_pad=0.1)
    figure.savefig(path, dpi=100, bbox_inches="tight")  # "tight" counts the row labels in


def loss_curves(losses: Mapping[int, Sequence[tuple[int, float]]], path: str | os.PathLike[str]) -> None:
    """Write the outer loss over the steps, one line a seed. losses: seed -> (step, mean loss since the one before)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6))
    axis = figure.subplots()
    for seed, curve in losses.items():
        axis.plot([step for step, _ in curve], [loss for _, loss in curve], linewidth=1, label=f"seed {seed}")
    axis.set_yscale("log")
    axis.set_xlabel("outer step")
    axis.set_ylabel("KRR loss on real batches")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def scatter(points: Sequence[tuple[str, float, float]], path: str | os.PathLike[str], across: str, up: str) -> None:
    """Write named points (name, x, y) as a PNG, the axes called ``across`` and ``up``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for name, x, y in points:
        axis.scatter([x], [y], color="0.2", s=20)
        axis.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.margins(0.2)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def coverage(
    representations: Tensor, targets: Tensor, path: str | os.PathLike[str], labels: Tensor | None = None
) -> None:
    """Write the 2-D PCA projection of the teacher's representations [N, C], with distilled targets [S, C] on them."""
    from matplotlib.figure import Figure

    points, stars = representations.double(), targets.double()
    mean = points.mean(0)
    _, spread, axes = torch.linalg.svd(points - mean, full_matrices=False)
    share = float(spread[:2].square().sum() / spread.square().sum())
    flat, flat_targets = (points - mean) @ axes[:2].T, (stars - mean) @ axes[:2].T
    figure = Figure(figsize=(6, 5))
    axis = figure.subplots()
    colours: dict[str, Any] = {"color": "0.7"} if labels is None else {"c": labels.numpy(), "cmap": "tab10"}
    axis.scatter(flat[:, 0], flat[:, 1], s=6, alpha=0.5, linewidths=0, **colours)
    axis.scatter(
        flat_targets[:, 0], flat_targets[:, 1], s=90, marker="*", color="black", edgecolors="white", linewidths=0.6,
        label=f"{len(targets)} distilled targets",
    )  # fmt: skip
    axis.set_title(
        f"Teacher representations of {len(points):,} images and the distilled targets\n"
        f"(first two principal components, {share:.0%} of the variance{'' if labels is None else ', colour = class'})",
        fontsize=9,
    )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
