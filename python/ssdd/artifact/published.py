"""Images and targets as plain tensors in torch's own format: the published ``x_syn.pt`` and ``y_syn.pt``, and labelled
sets of other methods."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import InputError, in_float32
from .files import read_torch
from .pairs import DistilledSet
from .preprocessing import Preprocessing

MOST_CLASSES = 1 << 20
"""A label from here on means a damaged file: one-hot targets, or counts per class, would fill the memory."""

MOST_OUTSIDE = 0.05
"""Share of an import's values that may lie outside [0, 1] without a word on what the file holds: learned pixels may."""

FAR = 16
"""No image has values above this one after normalisation, so these are pixels up to 255."""


def read_tensor(path: str | os.PathLike[str]) -> Tensor:
    """Return the one tensor in a file of ``torch.save``. A file with any other object is refused."""
    name, tensor = Path(path).name, read_torch(path)
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: expected one tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise InputError(f"{name}: expected a plain tensor of numbers, got {tensor.dtype}, {tensor.layout}")
    return tensor.detach()


@in_float32
def read_published(
    images: str | os.PathLike[str],
    targets: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    method: str = "krr-st (published)",
    source: str = "",
    support_input: str = "raw",
) -> DistilledSet:
    """Read the files of the published code into a distilled set. Nothing in a file is executed.

    Args:
        images: ``x_syn.pt``, float [S, C, H, W].
        targets: ``y_syn.pt``, float [S, D] representations, or int [S] labels, which become one-hot targets.
        preprocessing: mean and std of the real images.
        method: name of the row in tables. Default "krr-st (published)".
        source: name of the image set that it was made from. Default "".
        support_input: "raw" (default, as the published code does): a network gets X_s as pixels; or "normalised".

    Raises:
        InputError: naming the file, what was expected and what came.
    """
    x, y = read_tensor(images), read_tensor(targets)
    kind = "representation"
    if _is_whole(y):
        y, kind = _one_hot(y, Path(targets).name, MOST_CLASSES, exact=False), "labels"
    _check_finite({Path(images).name: x, Path(targets).name: y})
    return DistilledSet(
        images=x.float() if x.is_floating_point() else x,
        targets=y.float(),
        preprocessing=preprocessing,
        method=method,
        source=source,
        support_input=support_input,  # type: ignore[arg-type]
        target_kind=kind,  # type: ignore[arg-type]
    )


@in_float32
def read_labelled(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    method: str = "labelled",
    source: str = "",
    classes: int = 0,
    stored: str | None = None,
) -> DistilledSet:
    """Read a labelled set that another method made (DSA, MTT, ...) into a distilled set. Nothing in a file is executed.

    Args:
        images: a file of one tensor, [S, C, H, W]: float pixels around [0, 1], or uint8.
        labels: a file of one tensor: int [S], numbers of classes from 0; or float [S, classes], shares that sum to 1.
        preprocessing: mean and std of the real images.
        method: name of the row in tables. Default "labelled".
        source: name of the image set that it was made from. Default "".
        classes: number of classes of that set. Default: as many as the labels name.
        stored: what the file holds: "pixels", or "normalised": images after normalisation with ``preprocessing``, which
            is undone. Default: pixels, if at least 95% of the values are in [0, 1]; otherwise it is an error.

    Raises:
        InputError: naming the file, what was expected and what came.
    """
    x, y, file = read_tensor(images), read_tensor(labels), Path(labels).name
    _check_finite({Path(images).name: x, file: y})
    if x.dim() != 4 or not len(x) or x.dtype == torch.bool:
        raise InputError(f"{Path(images).name}: expected images [S, C, H, W], got {x.dtype} {list(x.shape)}")
    if x.shape[1] != len(preprocessing.mean):
        expected = f"images of {len(preprocessing.mean)} channels, as mean and std have"
        raise InputError(f"{Path(images).name}: expected {expected}, got {list(x.shape)}")
    x = _as_pixels(x, Path(images).name, preprocessing, stored)
    if _is_whole(y):
        y = _one_hot(y, file, classes or MOST_CLASSES, exact=bool(classes))
    elif y.dim() != 2 or not y.is_floating_point():
        raise InputError(f"{file}: expected int [S] or float [S, classes], got {y.dtype} {list(y.shape)}")
    elif bool((y < 0).any()) or not torch.allclose(y.float().sum(1), torch.ones(len(y)), atol=1e-2):
        sums = y.float().sum(1)
        raise InputError(
            f"{file}: expected shares of classes, at least 0, that sum to 1 per image; got values from "
            f"{float(y.min()):.3g}, sums from {float(sums.min()):.3g} to {float(sums.max()):.3g}"
        )
    elif classes and y.shape[1] != classes:
        raise InputError(f"{file}: expected shares of {classes} classes, got {y.shape[1]}")
    return DistilledSet(x, y.float(), preprocessing, method=method, source=source, target_kind="labels")


def _as_pixels(x: Tensor, name: str, preprocessing: Preprocessing, stored: str | None) -> Tensor:
    """Return the images of a file as float32 pixels around [0, 1].

    Raises :class:`InputError`, with what to do, if the values cannot be what ``stored`` says, or if it says nothing and
    they may be pixels or normalised images.
    """
    if stored not in (None, "pixels", "normalised"):
        raise InputError(f"stored: expected 'pixels' or 'normalised', got {stored!r}")
    low, high = float(x.min()), float(x.max())
    came = f"{name}: {x.dtype} values from {low:.3g} to {high:.3g}"
    if stored == "normalised":
        if low >= 0:
            raise InputError(
                f"{came} are not normalised, as none is below 0; they look like pixels: leave out stored='normalised' "
                f"(--stored normalised){_advice_255(x.dtype, high)}"
            )
        pixels = preprocessing.pixels(x.float())
        low, high = float(pixels.min()), float(pixels.max())
        if low < -1 or high > 2:
            raise InputError(
                f"{came}: expected pixels around [0, 1] when mean {_round(preprocessing.mean)} and std "
                f"{_round(preprocessing.std)} are undone, got {low:.3g} to {high:.3g}; give the mean and std that the "
                "file was normalised with (--mean, --std in place of --data)"
            )
        return pixels
    if x.dtype == torch.uint8:
        return x.float() / 255
    outside, sure = float(((x < 0) | (x > 1)).float().mean()), low < -1 or high > 2
    if high > FAR:
        raise InputError(f"{came}: expected pixels around [0, 1]{_advice_255(x.dtype, high)}")
    if sure or (outside > MOST_OUTSIDE and stored is None):
        raise InputError(
            f"{came}, {outside:.0%} of them outside [0, 1]: expected pixels in [0, 1]. If the images are normalised, "
            "give stored='normalised' (--stored normalised) and the mean and std that they were normalised with "
            "(--mean, --std; 0.5 per channel for images in [-1, 1])"
            + ("" if sure else ". If they are pixels, give stored='pixels' (--stored pixels)")
        )
    return x.float()


def _advice_255(dtype: torch.dtype, high: float) -> str:
    """Return what to do with pixels up to 255 that are not uint8; "" for others."""
    return "; divide pixels up to 255 by 255, or save them as uint8" if high > 2 and dtype != torch.uint8 else ""


def _round(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _is_whole(y: Tensor) -> bool:
    """Return True for a list of whole numbers, which are labels."""
    return y.dim() == 1 and not y.is_floating_point() and y.dtype != torch.bool and bool(len(y))


def _one_hot(y: Tensor, name: str, classes: int, exact: bool) -> Tensor:
    """Return labels as one-hot targets: of ``classes`` numbers if that is ``exact``, or else of as many as there are.

    Raises :class:`InputError` if a label is negative, or ``classes`` or more.
    """
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise InputError(
            f"{name}: expected labels from 0 to at most {classes - 1}, got {int(y.min())} to {int(y.max())}"
        )
    return F.one_hot(y.long(), classes if exact else -1)


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, values in tensors.items():
        if not bool(torch.isfinite(values.float()).all()):
            raise InputError(f"{name}: values that are not finite")
