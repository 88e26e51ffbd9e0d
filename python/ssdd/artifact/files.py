"""Files that are read without executing anything, and written whole or not at all."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import secrets
import struct
import tokenize
import zipfile
import zlib
from functools import cache
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import InputError


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a safetensors file, and the JSON under its metadata key ``ssdd`` (empty if there is
    none)."""
    if not Path(path).is_file():
        raise InputError(f"{path}: {_why_no_file(Path(path))}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("ssdd", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    if not isinstance(meta, dict):
        raise InputError(f"{path}: damaged metadata (expected an object, got {type(meta).__name__})")
    return tensors, meta


def _why_no_file(path: Path) -> str:
    if not path.is_dir():
        return "no such file"
    file = path / "distilled.safetensors"
    return f"expected a file, got a folder{f'; give {file}' if file.is_file() else ''}"


@cache
def _plain_types() -> list[Any]:
    """Return the types in files of weights that are as plain as tensors: arguments of a training script, paths, and
    numbers of NumPy, under its old and its new name."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("_core", "core")]
    kinds = [type(np.dtype(letter)) for letter in "?bBhHiIlLqQefdg"]
    return [argparse.Namespace, PosixPath, np.dtype, *kinds, *((scalar, name) for name in names)]


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Return the tensors, numbers and plain containers that ``torch.save`` wrote. A file with any other object is
    refused."""
    name = Path(path).name
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_plain_types()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged stream can raise any exception in torch's unpickler
        # Keep the refused name of torch's message. The rest of it advises to load the file without the check.
        refused = re.search(r"(?i)unsupported [^\n]*?GLOBAL (\S+)", str(error))
        lines = str(error).splitlines() or [type(error).__name__]
        why = f"it asks for {refused[1]}" if refused else lines[0].partition(" In PyTorch 2.6")[0]
        raise InputError(f"{name}: not a file of plain tensors ({why}); nothing in it was run") from None


NO_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    MemoryError,
    OverflowError,
    RecursionError,
    SyntaxError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy raises for damaged ``.npy`` and ``.npz`` files."""


def why_no_array(error: Exception) -> str:
    """Say what is wrong with a ``.npy`` or ``.npz``, in numpy's words, without its advice to load the file unsafely."""
    if "pickle" in str(error):
        return "it holds Python objects or is no such file; nothing in it was run"
    return str(error) or type(error).__name__


LEAST_FREE = 1 << 20
"""Bytes that must be free where a result is to be written."""


def check_writable(path: str | os.PathLike[str], argument: str = "out") -> None:
    """Raise :class:`InputError` if it is known before any computing that ``path`` cannot be written; nothing is
    changed.

    ``argument``: what chose the path, for the message.
    """
    place = Path(path)
    while True:  # up to the folder that there is
        try:
            place.lstat()
            break
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent
        except OSError as error:  # a folder that we may not look into, a name that is too long
            raise InputError(f"{argument}: {place}: {error.strerror}; choose another place") from None
    if not place.is_dir():
        if place == Path(path):
            place = place.parent  # a file that is replaced
        else:
            raise InputError(f"{argument}: {place} is a file, so {path} cannot be made in it; choose another place")
    about = os.statvfs(place)
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = bool(about.f_flag & os.ST_RDONLY)
        why = "its file system is read-only" if read_only else "permission denied"
        raise InputError(f"{argument}: nothing can be written in {place} ({why}); choose another place")
    free = about.f_bavail * about.f_frsize
    if about.f_blocks and free < LEAST_FREE:
        raise InputError(
            f"{argument}: {place} has {free // 1000:,} kB of free space, which is too little; make room, or choose "
            "another place"
        )


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` beside ``path``, then move it there in one step. The user's umask sets the file's mode."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            flush_to_disk(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write that failed says no name
            error.filename = os.fspath(path)
        raise
    return path


def name_beside(path: Path) -> Path:
    """Return a new name in the folder of ``path``, for a file that takes its place once it is complete.

    ``tempfile`` is not used here: its files have mode 0600, and some file systems do not let us change that.
    """
    return path.parent / f"{path.name}.{secrets.token_hex(4)}"


def flush_to_disk(handle: int) -> None:
    """Call ``fsync`` on the descriptor. An error that says the file system has no ``fsync`` is ignored."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
