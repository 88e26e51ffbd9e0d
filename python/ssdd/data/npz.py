"""NumPy ``.npz`` in a plain schema: ``x_train`` uint8 [N, H, W, C]; optional ``y_train``, ``x_test``, ``y_test``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from ..config import InputError
from .sets import ImageSet, hold_out

KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> ImageSet:
    """Read the file without ever unpickling: an array of Python objects is refused, not executed."""
    if not path.is_file():
        raise InputError(f"data: no such file: {path}")
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in KEYS:
                if key in file:
                    arrays[key] = file[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path.name}: not a readable .npz of plain arrays ({error})") from None
    if "x_train" not in arrays:
        raise InputError(f"{path.name}: expected the array x_train, uint8 [N, H, W, C]; it is missing")
    for key, array in arrays.items():
        if key.startswith("x_") and array.ndim == 3:
            arrays[key] = array = array[..., None]
        kind = np.uint8 if key.startswith("x_") else np.integer
        if not np.issubdtype(array.dtype, kind):
            raise InputError(f"{path.name}: {key}: expected {kind.__name__}, got {array.dtype}")
        if key.startswith("y_") and (f"x{key[1:]}" not in arrays or len(array) != len(arrays[f"x{key[1:]}"])):
            raise InputError(f"{path.name}: {key}: expected one label an image of x{key[1:]}, got {array.shape}")
    x = {key: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("x_")}
    y = {key: torch.from_numpy(arrays[key].astype(np.int64)) for key in arrays if key.startswith("y_")}
    if "x_test" not in x:
        if x["x_train"].dim() != 4:
            raise InputError(f"{path.name}: x_train: expected [N, H, W, C], got {list(x['x_train'].shape)}")
        return hold_out(path.stem, x["x_train"], y.get("y_train"))
    return ImageSet(path.stem, x["x_train"], x["x_test"], y.get("y_train"), y.get("y_test"))
