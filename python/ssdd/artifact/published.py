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
"""A label beyond is a damaged file: one-hot targets, or counts a class, would fill the memory."""


def read_tensor(path: str | os.PathLike[str]) -> Tensor:
    """The one tensor in a file of ``torch.save``. Weights only: a file that asks for anything else is refused."""
    name, found = Path(path).name, read_torch(path)
    if not isinstance(found, Tensor):
        raise InputError(f"{name}: expected one tensor, got {type(found).__name__}")
    if found.layout != torch.strided or found.is_quantized or found.is_complex():
        raise InputError(f"{name}: expected a plain tensor of numbers, got {found.dtype}, {found.layout}")
    return found.detach()


def read_published(
    images: str | os.PathLike[str],
    targets: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    method: str = "krr-st (published)",
    source: str = "",
    support_input: str = "raw",
) -> DistilledSet:
    """``x_syn.pt`` float [S, C, H, W] and ``y_syn.pt``, float [S, D] representations or int [S] labels.

    ``preprocessing`` is that of the real images; the published code feeds X_s itself as raw pixels, hence the default
    of ``support_input``. Labels become one-hot targets. Raises :class:`InputError`; nothing in a file is executed.
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
    for name, tensor in ((images, x), (targets, y)):
        if not bool(torch.isfinite(tensor.float()).all()):
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
