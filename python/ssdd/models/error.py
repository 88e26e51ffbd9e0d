"""The representation error: the distance of predicted representations from the teacher's."""

from __future__ import annotations

from torch import Tensor

from ..config import InputError


def representation_error(predicted: Tensor, target: Tensor) -> float:
    """Return the squared error as a fraction of the teacher's variance: Σ‖p - g‖² / Σ‖g - mean g‖², both [N, C].

    0 means the teacher's own representations. Predicting their mean gives 1.
    """
    if predicted.shape != target.shape:
        raise InputError(f"predicted: expected {list(target.shape)}, got {list(predicted.shape)}")
    p, g = predicted.double(), target.double()
    return float((p - g).square().sum() / (g - g.mean(0)).square().sum())
