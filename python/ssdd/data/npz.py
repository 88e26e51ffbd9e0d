"""NumPy ``.npz`` files: ``x_train`` uint8 [N, H, W, C]; optional ``y_train``, ``x_test``, ``y_test``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..artifact import NO_ARRAY, why_no_array
from ..config import InputError
from .sets import ImageSet, describe_unseen, hold_out
from .stream import MEMORY
from .tree import count

KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path, memory: int = MEMORY) -> ImageSet:
    """Read the file without unpickling: an array of Python objects is refused.

    An array of more than ``memory`` bytes is mapped in the file, which must be uncompressed.
    """
    if not path.is_file():
        raise InputError(f"data: no such file: {path}")
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            others = [key for key in file.files if key not in KEYS]
            for key in KEYS:
                if key in file.files:
                    large = archive.getinfo(f"{key}.npy").file_size > memory
                    arrays[key] = _map_member(path, archive, f"{key}.npy") if large else file[key]
    except NO_ARRAY as error:
        raise InputError(f"{path.name}: not a readable .npz of plain arrays ({why_no_array(error)})") from None
    if "x_train" not in arrays:
        listed = ", ".join([*arrays, *others][:10]) or "no arrays"
        raise InputError(f"{path.name}: expected the array x_train, uint8 [N, H, W, C]; it has {listed}")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path.name}: {key}: expected an array, got a file of another form")
        if key.startswith("x_") and array.ndim == 3:
            arrays[key] = array = array[..., None]
        kind = np.uint8 if key.startswith("x_") else np.integer
        if not np.issubdtype(array.dtype, kind):
            raise InputError(f"{path.name}: {key}: expected {kind.__name__}, got {array.dtype}")
        images = arrays.get(f"x{key[1:]}")
        if key.startswith("y_") and (array.ndim != 1 or images is None or images.ndim < 1 or len(array) != len(images)):
            raise InputError(f"{path.name}: {key}: expected one label per image of x{key[1:]}, got {array.shape}")
    x: dict[str, Tensor] = {key: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("x_")}
    y = {key: torch.from_numpy(arrays[key].astype(np.int64)) for key in arrays if key.startswith("y_")}
    summary = _summary(path.stem, arrays, others)
    if "x_test" not in x:
        if x["x_train"].dim() != 4:
            raise InputError(f"{path.name}: x_train: expected [N, H, W, C], got {list(x['x_train'].shape)}")
        return hold_out(path.stem, x["x_train"], y.get("y_train"), memory=memory, summary=summary)
    return ImageSet(
        path.stem,
        x["x_train"],
        x["x_test"],
        y.get("y_train"),
        y.get("y_test"),
        summary="; ".join(filter(None, (summary, describe_unseen(y.get("y_train"), y.get("y_test"))))),
    )


def _summary(name: str, arrays: dict[str, np.ndarray], others: list[str]) -> str:
    train, labels = len(arrays["x_train"]), arrays.get("y_train")
    of = "without classes (no y_train)" if labels is None else f"of {count(len(np.unique(labels)), 'class')} (y_train)"
    if "x_test" in arrays:
        unlabelled = "" if labels is None or "y_test" in arrays else " without labels (no y_test)"
        text = f"{train:,} training images {of}, {len(arrays['x_test']):,} test images{unlabelled} (x_test)"
    else:
        text = f"{train:,} images {of}, one in five of them held out for testing (no x_test)"
    return f"{name}: {text}{'; arrays not read: ' + ', '.join(others) if others else ''}"


def _map_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Map an array in the archive. Its bytes are stored unchanged, after two headers."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} takes {entry.file_size:,} bytes and is compressed; write it with numpy.savez")
    with open(path, "rb") as file:
        file.seek(entry.header_offset + 26)
        lengths = file.read(4)  # the local header's name and extra field may differ from the directory's
        file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
        shape, fortran, dtype = _header(file)
        if fortran or dtype.hasobject:
            raise ValueError(f"{name}: expected plain numbers in C order")
        at = file.tell()
    if at + int(np.prod(shape)) * dtype.itemsize > path.stat().st_size:
        raise ValueError(f"{name}: the file is cut short")
    return np.memmap(path, dtype, "c", at, shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
