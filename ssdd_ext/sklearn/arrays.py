"""Checks of arrays and numbers, and their way to torch and back."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor

FLOATS = [np.float64, np.float32]


def to_torch(array: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return a dense array as a CPU tensor, without a copy if torch can read its memory."""
    array = np.asarray(array)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    # numpy calls an array of one row contiguous whatever the stride of its rows, which may be negative.
    as_it_is = array.flags.writeable and min(array.strides, default=0) >= 0
    tensor = torch.from_numpy(array if as_it_is else array.copy())
    return tensor if dtype is None else tensor.to(dtype)


def check_weights(sample_weight: Any, x: Any) -> np.ndarray | None:
    """Return weights [S] >= 0 of the samples, at least one of them positive, or None."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(x.shape[0], sample_weight, dtype=np.float64)
    weights = check_array(sample_weight, ensure_2d=False, dtype=FLOATS, input_name="sample_weight")
    if weights.shape != (x.shape[0],):
        raise ValueError(
            f"sample_weight: expected one number, or {x.shape[0]}, one per sample, got shape {weights.shape}"
        )
    if (weights < 0).any():
        raise ValueError(f"sample_weight: expected numbers >= 0, got {float(weights.min())}")
    if not (weights > 0).any():
        raise ValueError("sample_weight: expected at least one number > 0, got only zeros")
    return weights


def check_alpha(name: str, alpha: Any, *, positive: bool = False) -> np.ndarray:
    """Return finite numbers >= 0 (or > 0) as a vector."""
    try:
        values = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number or a list of numbers, got {alpha!r}") from None
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name}: expected a number or a list of numbers, got shape {values.shape}")
    wrong = [float(v) for v in values if not math.isfinite(v) or v < 0 or (positive and v == 0)]
    if wrong:
        raise ValueError(f"{name}: expected finite numbers {'>' if positive else '>='} 0, got {wrong[0]}")
    return values
