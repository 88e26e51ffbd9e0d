"""How far predicted representations are from the teacher's."""

from __future__ import annotations

from torch import Tensor

from ..config import InputError


def representation_error(predicted: Tensor, wanted: Tensor) -> float:
    """Squared error as a fraction of the teacher's variance: Σ‖p - g‖² / Σ‖g - mean g‖², both [N, C].

    0 is the teacher itself, 1 is what predicting the mean representation gives.
    """
    if predicted.shape != wanted.shape:
        raise InputError(f"predicted: expected {list(wanted.shape)}, got {list(predicted.shape)}")
    p, g = predicted.double(), wanted.double()
    return float((p - g).square().sum() / (g - g.mean(0)).square().sum())
