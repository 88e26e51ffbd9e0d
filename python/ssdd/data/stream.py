"""Image sets larger than the memory limit: decoded once into a file that is then mapped."""

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
"""Bytes that one part of a set may take in memory. A larger one is mapped from a file of the cache."""

ZEROS = 1 << 24
"""Bytes of zeros that are written at a time."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""

_log = logging.getLogger("ssdd")
_logged: set[str] = set()


def say_once(message: str) -> None:
    """Log a warning once, on standard error unless the user's logging is configured otherwise."""
    if message not in _logged:
        _logged.add(message)
        _log.warning("warning: %s", message)


def cache_directory() -> Path:
    """Return the folder for representations and decoded images: ``$XDG_CACHE_HOME/ssdd`` or ``~/.cache/ssdd``.

    Without a home folder it is in the system's folder for temporary files, and a warning says so.
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


def assemble(
    shape: Sequence[int], images: Iterable[np.ndarray], key: str, memory: int, cache: Path | None = None
) -> Tensor:
    """Assemble uint8 [N, H, W, C] = ``shape`` from images [H, W, C], in memory, or mapped if it is larger than
    ``memory``.

    ``key`` identifies the images (names, sizes, dates). A file that was written for the same key is mapped without
    decoding anything. A write that is interrupted leaves no file that could be mistaken for a complete one.
    """
    if int(np.prod(shape)) <= memory:
        into = np.empty(shape, np.uint8)
        _fill(into, images)
        return torch.from_numpy(into)
    folder = (cache or cache_directory()) / "images"
    file = folder / f"{hashlib.sha256(f'{key} {tuple(shape)}'.encode()).hexdigest()[:32]}.npy"
    if os.path.isfile(file):  # also False in a folder that we may not read
        return map_array(file)
    return write_array(file, shape, np.uint8, lambda out: _fill(out, images), "decoded images")


def write_array(
    file: Path,
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    fill: Callable[[np.ndarray], None],
    what: str,
    elsewhere: bool = True,
) -> Tensor:
    """Write a ``.npy`` file, which ``fill`` fills part by part, completely or not at all; return it mapped.

    If nothing can be written beside ``file`` (a read-only cache), a warning says so, and the array is in a temporary
    file for this run only. ``what``: its content, for messages. ``elsewhere``: False for a file that the user asked
    for, which must be written there. Raises :class:`InputError` if there is no room.
    """
    torn = file.with_suffix(f".{os.getpid()}")
    try:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            out = _new_array(torn, shape, dtype)
        except OSError as error:
            if error.errno in FULL or not elsewhere:
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
        return map_array(file)
    except OSError as error:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        advice = "set XDG_CACHE_HOME to a larger disk" if elsewhere else "make room, or choose another place"
        raise InputError(
            f"{file.parent}: no place for {size:,} bytes of {what} ({error.strerror or error}); {advice}"
        ) from None
    finally:
        _remove(torn)  # a mapped file stays readable


def _remove(file: Path) -> None:
    """Remove ``file`` if it is there and the file system lets us."""
    with suppress(OSError):
        file.unlink()


def _new_array(file: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> np.memmap:
    """Return a new ``.npy`` file, mapped for writing, whose blocks are allocated on the disk.

    Without allocated blocks, a disk that fills up during a write to a mapped page would end the process by SIGBUS.
    """
    out = np.lib.format.open_memmap(file, "w+", dtype, tuple(shape))
    with open(file, "r+b") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, os.stat(file).st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
            handle.seek(out.offset)  # after the header
            for start in range(0, out.nbytes, ZEROS):
                handle.write(bytes(min(ZEROS, out.nbytes - start)))
    return out


def map_array(file: Path) -> Tensor:
    """Map a ``.npy`` file as a tensor, whose pages are read when they are used. Changes to it are not written to the
    file."""
    return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))


def rows_of(images: Tensor, rows: Tensor) -> Iterator[np.ndarray]:
    """Yield the images of those rows, one at a time."""
    for row in rows.tolist():
        yield images[row].numpy()


def content_key(images: Tensor) -> str:
    """Return the SHA-256 of the pixels, as a key for files made from them."""
    digest = hashlib.sha256()
    for part in chunks(images):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def chunks(images: Tensor, size: int = 4096) -> Iterator[Tensor]:
    """Yield ``images`` in parts of ``size`` images."""
    yield from images.split(size)


def _fill(into: np.ndarray, images: Iterable[np.ndarray]) -> None:
    count = 0
    for i, image in enumerate(images):
        into[i] = image
        count = i + 1
    assert count == len(into), (count, len(into))
