"""The files that the published code writes: ``x_syn.pt`` and ``y_syn.pt``, plain tensors in torch's own format."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import InputError
from .files import read_torch
from .pairs import DistilledSet
from .preprocessing import Preprocessing

MOST_CLASSES = 1 << 20
"""A label from here on means a damaged file: one-hot targets, or counts per class, would fill the memory."""


def read_tensor(path: str | os.PathLike[str]) -> Tensor:
    """Return the one tensor in a file of ``torch.save``. A file with any other object is refused."""
    name, tensor = Path(path).name, read_torch(path)
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: expected one tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise InputError(f"{name}: expected a plain tensor of numbers, got {tensor.dtype}, {tensor.layout}")
    return tensor.detach()


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
    if y.dim() == 1 and not y.is_floating_point() and y.dtype != torch.bool and len(y):
        if int(y.min()) < 0 or int(y.max()) >= MOST_CLASSES:
            raise InputError(
                f"{Path(targets).name}: expected labels from 0 to at most {MOST_CLASSES - 1}, "
                f"got {int(y.min())} to {int(y.max())}"
            )
        y, kind = F.one_hot(y.long()), "labels"
    for name, values in ((images, x), (targets, y)):
        if not bool(torch.isfinite(values.float()).all()):
            raise InputError(f"{Path(name).name}: values that are not finite")
    return DistilledSet(
        images=x.float() if x.is_floating_point() else x,
        targets=y.float(),
        preprocessing=preprocessing,
        method=method,
        source=source,
        support_input=support_input,  # type: ignore[arg-type]
        target_kind=kind,  # type: ignore[arg-type]
    )
