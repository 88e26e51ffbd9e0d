"""Representations of a whole image set, computed once and kept on disk, or read from a file somebody else wrote."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..artifact import write_atomically
from ..config import InputError
from ..data import ImageSet
from .teacher import Teacher


@dataclass(frozen=True)
class Representations:
    """g(X) for the training images, float32 [N, D], and for the held-out ones where they are known."""

    train: Tensor
    test: Tensor | None

    @property
    def dimension(self) -> int:
        return int(self.train.shape[1])


def represent(teacher: Teacher, data: ImageSet, cache: str | os.PathLike[str] | None = None) -> Representations:
    """Representations of ``data``, from the folder ``cache`` if they are there, else computed and put there.

    The key is weights, structure, preprocessing, images and torch version. ``cache=None``: computed, not kept. A
    network whose code changed without its weights or its printed form changing needs ``cache=None``.
    """
    n = len(data.x_train)
    file = None
    if cache is not None:
        key = hashlib.sha256(f"{teacher.key()} {data.fingerprint} {torch.__version__}".encode()).hexdigest()
        file = Path(cache) / f"{key[:32]}.npy"
        try:
            both = torch.from_numpy(np.load(file, allow_pickle=False))
            if both.dtype == torch.float32 and both.dim() == 2 and len(both) == n + len(data.x_test):
                return Representations(both[:n], both[n:])
        except (OSError, ValueError, EOFError):
            pass  # not there, or damaged: compute and write it again
    found = Representations(teacher.represent(data.x_train), teacher.represent(data.x_test))
    if file is not None and found.test is not None:
        buffer = io.BytesIO()
        np.save(buffer, torch.cat([found.train, found.test]).numpy(), allow_pickle=False)
        write_atomically(file, buffer.getvalue())
    return found


def read_representations(path: str | os.PathLike[str], data: ImageSet) -> Representations:
    """Representations a user computed elsewhere: a ``.npy`` file of floats [rows, D], rows in the source's order.

    Rows for all images (training images, then test images; in the source's own order where it has no test part), or
    for the training images alone, where the source has test images of its own: then no representation error is known.
    """
    name = Path(path).name
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"representations: {name}: not a readable .npy of plain numbers ({error})") from None
    n, q = len(data.x_train), len(data.x_test)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        came = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"representations: {name}: expected floats [rows, D], got {came}")
    if not np.isfinite(array).all():
        raise InputError(f"representations: {name}: values that are not finite")
    values = torch.from_numpy(array.astype(np.float32))
    own_test = torch.equal(data.rows_train, torch.arange(n))
    if len(values) == n + q:
        return Representations(values[data.rows_train], values[data.rows_test])
    if len(values) == n and own_test:
        return Representations(values, None)
    wanted = f"{n + q} rows (training and test images)" + (f" or {n} (training images)" if own_test else "")
    raise InputError(f"representations: {name}: expected {wanted} for {data.name}, got {len(values)}")
