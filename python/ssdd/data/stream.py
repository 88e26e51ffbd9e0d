"""Image sets larger than the memory they are given: decoded once into a file that is mapped, not read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import InputError

MEMORY = 4 << 30
"""Bytes that one part of a set may take in memory; a larger one is mapped from a file of the cache."""


def cache_directory() -> Path:
    """Where representations and decoded images are kept: ``$XDG_CACHE_HOME/ssdd``, by default ``~/.cache/ssdd``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssdd"


def assembled(
    shape: Sequence[int], images: Iterable[np.ndarray], key: str, memory: int, cache: Path | None = None
) -> Tensor:
    """uint8 [N, H, W, C] = ``shape`` from an iterable of images [H, W, C]; in memory, or mapped where it is too large.

    ``key`` says what the images are (names, sizes, dates): a file written for the same key is mapped without
    decoding anything. A write that is broken off leaves nothing that is taken for the whole.
    """
    if int(np.prod(shape)) <= memory:
        into = np.empty(shape, np.uint8)
        _fill(into, images)
        return torch.from_numpy(into)
    folder = (cache or cache_directory()) / "images"
    file = folder / f"{hashlib.sha256(f'{key} {tuple(shape)}'.encode()).hexdigest()[:32]}.npy"
    if not file.is_file():
        write_array(file, shape, np.uint8, lambda out: _fill(out, images), "decoded images")
    return mapped(file)


def write_array(
    file: Path, shape: Sequence[int], dtype: npt.DTypeLike, fill: Callable[[np.ndarray], None], what: str
) -> None:
    """A ``.npy`` file of that shape, which ``fill`` writes part by part; whole or not at all. ``what``: its content,
    for the message where the disk has no room for it."""
    torn = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        out = np.lib.format.open_memmap(torn, "w+", dtype, tuple(shape))
        # Blocks first: a disk that fills while a mapped page is written would end the process by SIGBUS.
        with open(torn, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, os.stat(torn).st_size)
        fill(out)
        out.flush()
        del out
        os.replace(torn, file)
    except OSError as error:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raise InputError(f"{file.parent}: no place for {size:,} bytes of {what} "
                         f"({error.strerror or error}); set XDG_CACHE_HOME to a larger disk") from None  # fmt: skip
    finally:
        torn.unlink(missing_ok=True)


def mapped(file: Path) -> Tensor:
    """A ``.npy`` file as a tensor whose pages are read when they are asked for. Changes to it reach no file."""
    return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))


def rows_of(images: Tensor, rows: Tensor) -> Iterator[np.ndarray]:
    """The images of those rows, one after the other."""
    for row in rows.tolist():
        yield images[row].numpy()


def content_key(images: Tensor) -> str:
    """SHA-256 of the pixels: the key of what is made from them."""
    digest = hashlib.sha256()
    for part in chunks(images):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def chunks(images: Tensor, size: int = 4096) -> Iterator[Tensor]:
    """``images`` in parts small enough to be worked on in memory."""
    yield from images.split(size)


def _fill(into: np.ndarray, images: Iterable[np.ndarray]) -> None:
    count = 0
    for i, image in enumerate(images):
        into[i] = image
        count = i + 1
    assert count == len(into), (count, len(into))
