"""Representations of a whole image set, computed once and kept on disk, or read from a file somebody else wrote."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..artifact import why_no_array
from ..config import InputError
from ..data import ImageSet, mapped, write_array
from .teacher import Teacher

ROWS = 4096
"""Rows that are looked at at once."""


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

    What the cache holds is mapped, not read: a row takes memory when it is asked for. It is also written a batch at a
    time. The teacher runs where it is, the result is in main memory.
    """
    n, q = len(data.x_train), len(data.x_test)
    if cache is None:
        return Representations(teacher.represent(data.x_train), teacher.represent(data.x_test))
    key = hashlib.sha256(f"{teacher.key()} {data.fingerprint} {torch.__version__}".encode()).hexdigest()
    file = Path(cache) / f"{key[:32]}.npy"
    both = cached(file, n + q)
    if both is None:
        # Training images, then test images.
        both = write_parts(file, n + q, chain(teacher.represented(data.x_train), teacher.represented(data.x_test)))
    return Representations(both[:n], both[n:])


def cached(file: Path, rows: int) -> Tensor | None:
    """What the file holds, mapped; None where it is not there, damaged or of another form."""
    try:
        found = mapped(file)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == torch.float32 and found.dim() == 2 and len(found) == rows else None


def write_parts(file: Path, rows: int, parts: Iterator[Tensor]) -> Tensor:
    """Write a file that :func:`cached` reads, of ``rows`` rows that come part by part; return it mapped."""
    first = next(parts)

    def fill(out: np.ndarray) -> None:
        at = 0
        for part in chain([first], parts):
            out[at : at + len(part)] = part.numpy()
            at += len(part)

    return write_array(file, (rows, first.shape[1]), np.float32, fill, "representations")


def write_representations(path: str | os.PathLike[str], data: ImageSet, found: Representations) -> Path:
    """Write the rows of ``found`` to a ``.npy`` file, float32 [N, D], in the source's own order.

    :func:`read_representations` reads it back for the same source. ``found`` must have the rows of the test images.
    """
    if found.test is None:
        raise InputError(f"representations: those of the test images of {data.name} are not known")
    values = torch.cat([found.train, found.test])
    rows = torch.cat([data.rows_train, data.rows_test])

    def fill(out: np.ndarray) -> None:
        out[rows.numpy()] = values.numpy()

    write_array(Path(path), tuple(values.shape), np.float32, fill, "representations")
    return Path(path)


def read_representations(path: str | os.PathLike[str], data: ImageSet) -> Representations:
    """Representations a user computed elsewhere: a ``.npy`` file of floats [rows, D], rows in the source's order.

    Rows for all images (training images, then test images; in the source's own order where it has no test part), or
    for the training images alone, where the source has test images of its own: then no representation error is known.
    float32 is mapped.
    """
    name = Path(path).name
    if name.endswith((".pt", ".pth")):
        raise InputError(
            f"representations: {name}: expected a .npy file; write one with numpy.save(FILE, tensor.numpy())"
        )
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = why_no_array(error)
        raise InputError(f"representations: {name}: not a readable .npy of plain numbers ({why})") from None
    n, q = len(data.x_train), len(data.x_test)
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != 2
        or not array.shape[1]
        or not np.issubdtype(array.dtype, np.floating)
    ):
        came = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"representations: {name}: expected floats [rows, D], got {came}")
    if not all(np.isfinite(array[i : i + ROWS]).all() for i in range(0, len(array), ROWS)):
        raise InputError(f"representations: {name}: values that are not finite")
    # Mapped where it holds what is needed as it is; a row then takes memory when it is asked for.
    values = torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.float32))
    own_test = torch.equal(data.rows_train, torch.arange(n))
    if len(values) == n + q and own_test:
        return Representations(values[:n], values[n:])
    if len(values) == n + q:
        return Representations(values[data.rows_train], values[data.rows_test])
    if len(values) == n and own_test:
        return Representations(values, None)
    wanted = f"{n + q} rows (training and test images)" + (f" or {n} (training images)" if own_test else "")
    raise InputError(f"representations: {name}: expected {wanted} for {data.name}, got {len(values)}")
