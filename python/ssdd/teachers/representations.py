"""Representations of a whole image set, computed once and kept on disk, or read from a file of another program."""

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

from ..artifact import NO_ARRAY, why_no_array
from ..config import InputError, Pulse, Report, in_float32, silent
from ..data import ImageSet, map_array, write_array
from .teacher import Teacher

ROWS = 4096
"""Rows that are checked at a time."""


@dataclass(frozen=True, eq=False)
class Representations:
    """The teacher's representations of an image set.

    Args:
        train: of the training images, float32 [N, D].
        test: of the held-out images, float32 [Q, D], or None if they are not known.
    """

    train: Tensor
    test: Tensor | None

    @property
    def dimension(self) -> int:
        return int(self.train.shape[1])


@in_float32
def represent(
    teacher: Teacher, data: ImageSet, cache: str | os.PathLike[str] | None = None, report: Report = silent
) -> Representations:
    """Compute the representations of ``data``, or read them from ``cache`` if they are there.

    The key in the cache is weights, structure, preprocessing, images and torch version. If the code of a network
    changes without changing its weights or its printed form, use ``cache=None``. A cached file is mapped, so a row
    takes memory only when it is used, and it is written batch by batch.

    Args:
        teacher: the teacher; it runs on its own device.
        data: the images.
        cache: the folder of the cache. Default: nothing is kept.
        report: receives ``{"event": "progress", "stage": "represent", "step", "steps"}``, steps being images, if it has
            a true attribute ``moves``. Default: nothing is reported.

    Returns:
        :class:`Representations`, in main memory.
    """
    n, q = len(data.x_train), len(data.x_test)
    pulse = Pulse(report, "represent", n + q)

    def parts(images: Tensor, done: int) -> Iterator[Tensor]:
        pulse(done)
        for part in teacher.represented(images):
            done += len(part)
            pulse(done)
            yield part

    if cache is None:
        return Representations(torch.cat(list(parts(data.x_train, 0))), torch.cat(list(parts(data.x_test, n))))
    key = hashlib.sha256(f"{teacher.key()} {data.fingerprint} {torch.__version__}".encode()).hexdigest()
    file = Path(cache) / f"{key[:32]}.npy"
    both = map_cached(file, n + q)
    if both is None:
        # Training images, then test images.
        both = write_parts(file, n + q, chain(parts(data.x_train, 0), parts(data.x_test, n)))
    return Representations(both[:n], both[n:])


def map_cached(file: Path, rows: int) -> Tensor | None:
    """Map the file; None if it does not exist, is damaged or has another shape."""
    try:
        array = map_array(file)
    except NO_ARRAY:
        return None
    return array if array.dtype == torch.float32 and array.dim() == 2 and len(array) == rows else None


def write_parts(file: Path, rows: int, parts: Iterator[Tensor]) -> Tensor:
    """Write the ``rows`` rows that ``parts`` yields to a file for :func:`map_cached`, and return it mapped."""
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

    write_array(Path(path), tuple(values.shape), np.float32, fill, "representations", elsewhere=False)
    return Path(path)


@in_float32
def read_representations(path: str | os.PathLike[str], data: ImageSet) -> Representations:
    """Read representations that were computed elsewhere; float32 is mapped.

    Args:
        path: a ``.npy`` file of floats [rows, D]. It has rows for all images: training images, then test images, or in
            the source's own order if that has no test part. If the source has a test part, it may have rows for the
            training images alone; then there is no representation error.
        data: the images.

    Raises:
        InputError: if the file does not have these rows, or has values that are not finite.
    """
    name = Path(path).name
    if name.endswith((".pt", ".pth")):
        raise InputError(
            f"representations: {name}: expected a .npy file; write one with numpy.save(FILE, tensor.numpy())"
        )
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except NO_ARRAY as error:
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
    with np.errstate(over="ignore"):
        parts = (array[i : i + ROWS].astype(np.float32, copy=False) for i in range(0, len(array), ROWS))
        if not all(np.isfinite(part).all() for part in parts):
            raise InputError(f"representations: {name}: values that are not finite, or too large for float32")
    # float32 stays mapped: a row then takes memory only when it is used.
    values = torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.float32))
    own_test = torch.equal(data.rows_train, torch.arange(n))
    if len(values) == n + q and own_test:
        return Representations(values[:n], values[n:])
    if len(values) == n + q:
        return Representations(values[data.rows_train], values[data.rows_test])
    if len(values) == n and own_test:
        return Representations(values, None)
    expected = f"{n + q} rows (training and test images)" + (f" or {n} (training images)" if own_test else "")
    raise InputError(f"representations: {name}: expected {expected} for {data.name}, got {len(values)}")
