"""CIFAR-10 and CIFAR-100 in their original form: python pickles, read without executing anything in them.

A pickle is a program. :class:`_Plain` runs only the instructions that these files need: plain containers, numbers,
bytes, and one uint8 array, for which it uses a class of its own instead of NumPy's. Every other name is refused before
it is imported.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import InputError
from .sets import ImageSet

CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR100 = ("train", "test")
SIDE, CHANNELS = 32, 3


class _Array:
    """The replacement of a pickled uint8 array: its shape and bytes, checked."""

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or fortran or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not plain uint8 in C order")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


class _Dtype:
    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of type {name!r}")

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment, which a byte does not have."""


class _Reconstruct:
    """Replaces NumPy's function of that name: an empty array, to be filled by its state."""

    def __new__(cls, *_: Any) -> Any:
        return _Array()


class _Encoded:
    """Replaces ``_codecs.encode``, by which Python 3 writes bytes in old protocols."""

    def __new__(cls, text: str, codec: str) -> Any:
        if codec != "latin1":
            raise pickle.UnpicklingError(f"text in codec {codec!r}")
        return text.encode("latin1")


_NAMES: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")
        return _NAMES[module, name]


def _check_memo(content: bytes) -> None:
    """Refuse a place in the memo that no writer uses. Python's unpickler allocates memory up to the highest place, so
    that eight bytes could take gigabytes."""
    for count, (instruction, argument, _position) in enumerate(pickletools.genops(io.BytesIO(content))):
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"instruction {count} stores into place {argument:,} of its memo")


def read_pickle(file: Path) -> dict[str, Any]:
    """Read the dictionary in a CIFAR file, keys as text, without executing anything. Raises :class:`InputError` for
    any other file."""
    try:
        raw = file.read_bytes()
        _check_memo(raw)
        content = _Plain(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a hostile or damaged stream can raise any exception
        raise InputError(
            f"{file.name}: not a CIFAR file ({error or type(error).__name__}); nothing in it was run"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{file.name}: expected a dictionary, got {type(content).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _batch(file: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(file)
    data = content.get("data")
    pixels = data.values if isinstance(data, _Array) and hasattr(data, "values") else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != CHANNELS * SIDE * SIDE:
        raise InputError(
            f"{file.name}: data: expected uint8 [N, {CHANNELS * SIDE * SIDE}], "
            f"got {'none' if pixels is None else list(pixels.shape)}"
        )
    labels = content.get(label)
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(y) is int for y in labels):
        raise InputError(f"{file.name}: {label}: expected a list of {len(pixels)} whole numbers")
    images = pixels.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def is_cifar(root: Path) -> str | None:
    """Return "cifar10" or "cifar100" for a folder that holds the files of one, else None."""
    if (root / CIFAR10[0]).is_file():
        return "cifar10"
    return "cifar100" if all((root / name).is_file() for name in CIFAR100) else None


def read_cifar(root: Path) -> ImageSet:
    """Read ``cifar-10-batches-py`` (data_batch_1..5, test_batch) or ``cifar-100-python`` (train, test; fine labels)."""
    name = is_cifar(root)
    names = CIFAR10 if name == "cifar10" else CIFAR100
    missing = [n for n in names if not (root / n).is_file()]
    if missing:
        raise InputError(f"{root.name}: the files {', '.join(missing)} of {name} are missing")
    label = "labels" if name == "cifar10" else "fine_labels"
    batches = [_batch(root / n, label) for n in names]
    x = [torch.from_numpy(images) for images, _ in batches]
    y = [torch.from_numpy(labels) for _, labels in batches]
    x_train, y_train = torch.cat(x[:-1]), torch.cat(y[:-1])
    files = f"{names[0]} to {names[-2]}" if len(names) > 2 else names[0]
    summary = (
        f"{name}: {len(x_train):,} training images from {files}, {len(x[-1]):,} test images from {names[-1]}, "
        f"{len(y_train.unique())} classes ({label})"
    )
    return ImageSet(str(name), x_train, x[-1], y_train, y[-1], summary=summary)
