"""Image sets larger than the memory they are given: decoded once into a file that is mapped, not read."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import InputError

MEMORY = 4 << 30
"""Bytes that one part of a set may take in memory; a larger one is mapped from a file of the cache."""

ZEROS = 1 << 24
"""Bytes of zeros that are written at once."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk answers that has no room."""

_log = logging.getLogger("ssdd")
_said: set[str] = set()


def say_once(message: str) -> None:
    """Log a warning, on standard error unless the user's logging says otherwise; the same one is not repeated."""
    if message not in _said:
        _said.add(message)
        _log.warning("warning: %s", message)


def cache_directory() -> Path:
    """Return where representations and decoded images are kept: ``$XDG_CACHE_HOME/ssdd`` or ``~/.cache/ssdd``.

    A user without a home folder gets one in the system's folder for temporary files, and is told.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "ssdd"
    try:
        return Path.home() / ".cache" / "ssdd"
    except RuntimeError:  # no HOME, and no line in the list of users
        folder = Path(tempfile.gettempdir()) / f"ssdd-cache-{os.getuid()}"
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise InputError(f"cache: {folder} is another user's, and there is no home folder; set XDG_CACHE_HOME")
    say_once(f"there is no home folder: the cache is {folder} (XDG_CACHE_HOME names another)")
    return folder


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
    if os.path.isfile(file):  # False, too, in a folder that may not be looked into
        return mapped(file)
    return write_array(file, shape, np.uint8, lambda out: _fill(out, images), "decoded images")


def write_array(
    file: Path, shape: Sequence[int], dtype: npt.DTypeLike, fill: Callable[[np.ndarray], None], what: str
) -> Tensor:
    """Write a ``.npy`` file of that shape, which ``fill`` fills part by part, whole or not at all; return it mapped.

    Where nothing can be written beside ``file`` (a read-only cache), the user is told, and the array is in a temporary
    file that nobody finds again. ``what``: its content, for messages. Raises :class:`InputError` if there is no room.
    """
    torn = file.with_suffix(f".{os.getpid()}")
    try:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            out = _new_array(torn, shape, dtype)
        except OSError as error:
            if error.errno in FULL:
                raise
            _remove(torn)
            temporary = Path(tempfile.gettempdir())
            say_once(
                f"{file.parent}: nothing can be written there ({error.strerror or error}); the {what} are kept in "
                f"{temporary} for this run only (XDG_CACHE_HOME names another cache)"
            )
            file = torn = temporary / f"ssdd-{secrets.token_hex(8)}.npy"
            out = _new_array(torn, shape, dtype)
        fill(out)
        out.flush()
        del out
        if file != torn:
            os.replace(torn, file)
        return mapped(file)
    except OSError as error:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raise InputError(
            f"{file.parent}: no place for {size:,} bytes of {what} "
            f"({error.strerror or error}); set XDG_CACHE_HOME to a larger disk"
        ) from None
    finally:
        _remove(torn)  # what is mapped stays readable


def _remove(file: Path) -> None:
    """Remove ``file`` if it is there and the file system lets us."""
    with suppress(OSError):
        file.unlink()


def _new_array(file: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> np.memmap:
    """Return a new ``.npy`` file, mapped for writing, whose blocks are on the disk.

    Without blocks, a disk that fills while a mapped page is written would end the process by SIGBUS.
    """
    out = np.lib.format.open_memmap(file, "w+", dtype, tuple(shape))
    with open(file, "r+b") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, os.stat(file).st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
            handle.seek(out.offset)  # behind the header
            for start in range(0, out.nbytes, ZEROS):
                handle.write(bytes(min(ZEROS, out.nbytes - start)))
    return out


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
