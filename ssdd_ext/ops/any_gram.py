"""Gram matrices of any kernel: by the op `gram`, by the Gram matrices of its parts, or by planned PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels import Cosine, Kernel, Linear
from ..kernels.products import unit_rows
from .gram import result_dtype, run_gram
from .gram_slopes import differentiable_gram
from .hyper import pack
from .native import is_of_angles
from .planned_gram import gram as planned_gram
from .register import is_plain_call, is_transformed, needs_gradient
from .simplify import is_composed


def gram(x: Tensor, z: Tensor | None, kernel: Kernel) -> Tensor:
    """Return K [..., S, Q] of x [..., S, D] and z [..., Q, D] (x with itself if z is None)."""
    if kernel.name not in ("linear", "rbf"):
        return _other_gram(x, z, kernel)
    hyper, values = pack(kernel, None, x.shape[:-2], result_dtype(x), x.device)
    return run_gram(x, z, hyper, values, kernel.name)


def _other_gram(x: Tensor, z: Tensor | None, kernel: Kernel) -> Tensor:
    """Return the Gram matrix of a kernel that is neither linear nor rbf: by planned PyTorch if it is mapped or
    compiled, or differentiated on a GPU, and else natively."""
    dtype = result_dtype(x)
    x, z = x.to(dtype), None if z is None else z.to(dtype)
    if is_composed(kernel):
        return kernel.form(x, z, gram)  # type: ignore[attr-defined]
    if isinstance(kernel, Cosine):
        unit = unit_rows(x)
        return gram(unit, unit if z is None else unit_rows(z), Linear())
    tensors = (x, z, *kernel.parameters)
    follows = needs_gradient(tensors)
    on_core = is_plain_call(tensors) and min(x.shape[-1], x.shape[-2], (x if z is None else z).shape[-2]) > 0
    if torch.compiler.is_compiling() or is_transformed() or (follows and not on_core):
        planned = planned_gram(x, z, kernel)
        for valid in kernel.in_range():
            planned = torch.where(valid[..., None, None], planned, math.nan)
        return planned
    wide = torch.float64 if is_of_angles(kernel.spec) else dtype
    hyper, values = pack(kernel, None, x.shape[:-2], wide, x.device)
    run = differentiable_gram if follows else run_gram
    k: Tensor = run(x.to(wide), None if z is None else z.to(wide), hyper, values, kernel.spec)
    return k.to(dtype)
