"""Hyper-parameters in the form of an op: numbers as a list, or all of them as the columns of one tensor [..., H]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels import Kernel
from ..ridge import Ridge
from .register import is_transformed


def number_if_constant(p: float | Tensor, device: torch.device) -> float | Tensor:
    """Turn a scalar on the CPU into a number if the inputs are on a GPU and nothing differentiates, compiles or maps
    it.

    Copying it to the GPU would synchronise.
    """
    if not isinstance(p, Tensor) or p.dim() > 0 or p.device.type != "cpu" or device.type == "cpu":
        return p
    traced = p.requires_grad or torch.compiler.is_compiling() or is_transformed()
    if type(p) in (Tensor, torch.nn.Parameter) and not traced:
        return float(p)
    if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"hyper-parameters: expected device {device}, where the inputs are, while a CUDA graph is captured, got cpu"
        )
    return p


def _in_range_of(dtype: torch.dtype, value: float) -> float:
    """Return ``value``, or inf if ``dtype`` cannot hold it: the core then finds it out of range."""
    return value if abs(value) <= torch.finfo(dtype).max else math.inf


def pack(
    kernel: Kernel | None, ridge: Ridge | None, batch: torch.Size, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, list[float]]:
    """Return (hyper [..., H], or None if all are numbers; the numbers). The kernel's come first, the ridge's last."""
    values = (() if kernel is None else kernel.parameters) + (() if ridge is None else (ridge.value,))
    parameters = [number_if_constant(p, device) for p in values]
    if not any(isinstance(p, Tensor) for p in parameters):
        return None, [float(p) for p in parameters]
    columns = [
        p.to(device=device, dtype=dtype).expand(batch)
        if isinstance(p, Tensor)
        else torch.full(batch, _in_range_of(dtype, float(p)), dtype=dtype, device=device)
        for p in parameters
    ]
    return torch.stack(columns, -1), [0.0] * len(parameters)
