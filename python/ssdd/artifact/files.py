"""Files that are read without executing anything, and written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import InputError


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the JSON under the metadata key ``ssdd`` (empty where there is none) of a safetensors file."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("ssdd", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    if not isinstance(meta, dict):
        raise InputError(f"{path}: damaged metadata (expected an object, got {type(meta).__name__})")
    return tensors, meta


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers. A file that asks for anything else is refused."""
    name = Path(path).name
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        RecursionError,
        MemoryError,
        OverflowError,
        zipfile.BadZipFile,
    ) as error:
        # Of torch's own message only what the file asks for: the rest advises to load it all the same.
        asked = re.search(r"(?i)unsupported [^\n]*?GLOBAL (\S+)", str(error))
        lines = str(error).splitlines() or [type(error).__name__]
        why = f"it asks for {asked[1]}" if asked else lines[0].partition(" In PyTorch 2.6")[0]
        raise InputError(f"{name}: not a file of plain tensors ({why}); nothing in it was run") from None


def why_no_array(error: Exception) -> str:
    """What is wrong with a ``.npy`` or ``.npz``, in numpy's words; without its advice to load it unsafely."""
    if "pickle" in str(error):
        return "it holds Python objects or is no such file; nothing in it was run"
    return str(error) or type(error).__name__


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` beside ``path`` and move it there in one step. The user's umask decides who may read it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            flush_to_disk(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return path


def name_beside(path: Path) -> Path:
    """Return a new name in the folder of ``path``, for what takes its place once it is whole.

    ``tempfile`` gives what it makes a mode of its own, which a file system may not let us change back.
    """
    return path.parent / f"{path.name}.{secrets.token_hex(4)}"


def flush_to_disk(handle: int) -> None:
    """Call ``fsync`` on the descriptor; a file system that has none is left to write when it will."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
