"""Pictures: contact sheet, images over the steps, loss curves, coverage of the teacher's representations."""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..artifact import write_atomically
from ..config import InputError, Report, in_float32

MAX_SIDE = 64
"""Pixels per side up to which small images are enlarged, by whole factors, so that pixels stay sharp."""

POINTS = 10_000
"""Largest number of representations in a coverage picture."""

SAMPLE = 32 << 20
"""Largest number of bytes, in float64, of the representations that a coverage picture is computed from."""


def draw_each(pictures: Mapping[Path, Callable[[Path], object]], report: Report) -> list[Path]:
    """Call each function with its file; return the files that were drawn.

    Pictures come after results, so an error in one is a warning that names it and does not end the run.
    """
    drawn = []
    for file, draw in pictures.items():
        try:
            draw(file)
            drawn.append(file)
        except Exception as error:  # drawing libraries and their settings can raise any exception
            why = str(error).strip().partition("\n")[0]
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            report(
                {
                    "event": "warning",
                    "message": f"{file}: this picture was not drawn ({kind}{why}); the results are complete without it",
                }
            )
    return drawn


@contextmanager
def _plain_environment() -> Iterator[None]:
    """Let ``import matplotlib`` succeed with any backend named in the environment, and without a home folder.

    Pictures are drawn by Agg only. A backend inherited from a notebook need not be installed here.
    """
    before = {name: os.environ.get(name) for name in ("MPLBACKEND", "MPLCONFIGDIR")}
    with ExitStack() as stack:
        if not before["MPLCONFIGDIR"]:
            try:
                Path.home()
            except RuntimeError:
                os.environ["MPLCONFIGDIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ.pop("MPLBACKEND", None)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of that many inches, drawn by Agg."""
    if "matplotlib" not in sys.modules:
        with _plain_environment():
            import_module("matplotlib.font_manager")  # it reads and writes the folder that the environment names
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _save(picture: Any, path: str | os.PathLike[str], **how: Any) -> None:
    """Write a matplotlib figure or a PIL image as PNG, whole or not at all."""
    content = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(content, format="png", dpi=100, **how)
    else:
        picture.save(content, format="PNG")
    write_atomically(path, content.getvalue())


def _tiles(images: Tensor, columns: int, gap: int = 2) -> Any:
    """Return a grid as a PIL image. images: float [N, C, H, W] in pixels; values outside [0, 1] are clipped."""
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


@in_float32
def contact_sheet(images: Tensor, path: str | os.PathLike[str], columns: int | None = None) -> None:
    """Write all images as one PNG.

    Args:
        images: float [N, C, H, W] in pixels, C = 1 or 3.
        path: the file.
        columns: images per row of the sheet. Default: about twice as many columns as rows, at most 25.
    """
    _save(_tiles(images, columns or min(25, math.ceil(math.sqrt(2 * len(images))))), path)


def images_over_steps(snapshots: Mapping[int, Tensor], path: str | os.PathLike[str], count: int = 13) -> None:
    """Write a PNG with one row per snapshot (first to last outer step); the first ``count`` images are the columns."""
    moments = sorted(snapshots)
    columns = min(count, len(snapshots[moments[0]]))
    rows = [_tiles(snapshots[step][:columns], columns) for step in moments]
    width, height = rows[0].size
    figure = _figure(9, 0.35 + 9 * len(rows) * height / width)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row, step in zip(axes, rows, moments, strict=True):
        axis.imshow(row, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_ylabel(f"{step:,}", rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0].set_title("Distilled images after so many outer steps (first row: the real images they start from)")
    figure.tight_layout(h_pad=0.1)
    _save(figure, path, bbox_inches="tight")  # "tight" includes the row labels


def loss_curves(losses: Mapping[int, Sequence[tuple[int, float]]], path: str | os.PathLike[str]) -> None:
    """Write the outer loss over the steps, one line per seed. losses: seed -> (step, mean loss since the previous
    entry)."""
    figure = _figure(6, 3.6)
    axis = figure.subplots()
    for seed, curve in losses.items():
        axis.plot([step for step, _ in curve], [loss for _, loss in curve], linewidth=1, label=f"seed {seed}")
    axis.set_yscale("log")
    axis.set_xlabel("outer step")
    axis.set_ylabel("KRR loss on real batches")
    axis.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def scatter(points: Sequence[tuple[str, float, float]], path: str | os.PathLike[str], across: str, up: str) -> None:
    """Write named points (name, x, y) as a PNG, with the axis labels ``across`` and ``up``."""
    figure = _figure(6, 4)
    axis = figure.subplots()
    for name, x, y in points:
        axis.scatter([x], [y], color="0.2", s=20)
        axis.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.margins(0.2)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    figure.tight_layout()
    _save(figure, path)


def coverage(
    representations: Tensor, targets: Tensor, path: str | os.PathLike[str], labels: Tensor | None = None
) -> None:
    """Write the 2-D PCA projection of the teacher's representations [N, C] and of the distilled targets [S, C].

    The projection is computed from at most ``POINTS`` of them, always the same sample. ``labels``, int64 [N], give the
    colours. Representations may be mapped: only the sample is read.
    """
    rows = sample(*representations.shape)
    points = representations[rows].double().cpu()
    mean, axes, share = plane(points)
    flat, flat_targets = (
        torch.cat([(part.double().cpu() - mean) @ axes for part in x.split(1024)]) for x in (points, targets)
    )
    figure = _figure(6, 5)
    axis = figure.subplots()
    colours: dict[str, Any] = {"color": "0.7"} if labels is None else {"c": labels[rows].numpy(), "cmap": "tab10"}
    axis.scatter(flat[:, 0], flat[:, 1], s=6, alpha=0.5, linewidths=0, **colours)
    axis.scatter(
        flat_targets[:, 0],
        flat_targets[:, 1],
        s=90,
        marker="*",
        color="black",
        edgecolors="white",
        linewidths=0.6,
        label=f"{len(targets)} distilled targets",
    )
    shown = f"{len(points):,}" + (f" of {len(representations):,}" if len(points) < len(representations) else "")
    components = f"first two principal components, {share:.0%} of the variance"
    if points.shape[1] == 1:
        components = "one number per image, drawn as a line"
    axis.set_title(
        f"Teacher representations of {shown} images and the distilled targets\n"
        f"({components}{'' if labels is None else ', colour = class'})",
        fontsize=9,
    )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def sample(n: int, dimension: int) -> Tensor:
    """Return sorted rows of ``n`` representations: all, or as many as ``POINTS`` and ``SAMPLE`` allow."""
    count = min(n, POINTS, max(2, SAMPLE // (8 * dimension)))
    return torch.from_numpy(np.sort(np.random.default_rng(0).choice(n, count, replace=False)))


def plane(points: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the mean [C], the first two principal axes [C, 2] of float64 ``points`` [N, C], and their share of the
    variance.

    The axes come from the covariance matrix, or from the Gram matrix of the points if that is smaller. If there is no
    second axis, it is zero.
    """
    from scipy.linalg import eigh

    mean = points.mean(0)
    centred = points - mean
    wide = centred.shape[1] > len(centred)
    products = centred @ centred.T if wide else centred.T @ centred
    total, size = float(products.trace()), len(products)
    # The transpose of a symmetric matrix is in LAPACK's order, so it is not copied.
    values, vectors = eigh(products.numpy().T, subset_by_index=[max(0, size - 2), size - 1], overwrite_a=True)
    leading = torch.from_numpy(vectors).flip(1)  # the largest first
    if wide:
        leading = centred.T @ leading
        leading = leading / leading.norm(dim=0).clamp_min(1e-300)
    axes = torch.zeros(centred.shape[1], 2, dtype=points.dtype)
    axes[:, : leading.shape[1]] = leading
    return mean, axes, min(1.0, max(0.0, float(values.sum())) / total) if total > 0 else 1.0
