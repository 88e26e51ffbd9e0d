"""The gradient of one Gram matrix on the core: plain CPU tensors in eager mode, every kernel that the core has."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import saved_tensors
from ..kernels import from_spec
from ..plan.problem import K_QS_BYTES
from .gram import forward
from .native import capsule, core, hyper_rows, matrices, native_code, return_workspace, take_workspace, to_capsule
from .planned_gram import gram as planned_gram
from .register import is_plain_call
from .second import pull_back

LEAST_ROWS = 64
"""Rows at a time, at least, of a Gram matrix that does not fit the memory for it."""


class _Gram(torch.autograd.Function):
    """K [..., S, Q] of x [..., S, D] and z [..., Q, D], or of x with itself; hyper-parameters as in the op ``gram``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor | None, hyper: Tensor | None, values: list[float], spec: str) -> Tensor:
        ctx.values, ctx.spec = values, spec
        ctx.save_for_backward(x, z, hyper)
        return forward(x, z, hyper, values, spec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, z, hyper = saved_tensors(ctx)
        if torch.is_grad_enabled() or not is_plain_call((grad,)) or not grad.numel():
            return _differentiable(ctx, grad)
        needs_x, needs_z, needs_hyper = ctx.needs_input_grad[:3]
        bars = (
            torch.empty(x.shape, dtype=x.dtype) if needs_x else None,
            torch.empty(z.shape, dtype=x.dtype) if needs_z and z is not None else None,
            torch.empty(hyper.shape, dtype=x.dtype) if needs_hyper and hyper is not None else None,
        )
        try:
            _pull_back(grad, x, z, hyper, ctx.values, ctx.spec, bars)
        except (ValueError, BufferError):  # a gradient that is zero and has no memory
            return _differentiable(ctx, grad)
        return (*bars, None, None)


def _pull_back(
    grad: Tensor,
    x: Tensor,
    z: Tensor | None,
    hyper: Tensor | None,
    values: list[float],
    spec: str,
    bars: tuple[Tensor | None, ...],
) -> None:
    """Write the gradients into ``bars``."""
    (s, d), q = x.shape[-2:], (x if z is None else z).shape[-2]
    batch, threads = math.prod(x.shape[:-2]), torch.get_num_threads()
    chunk = s if z is None else max(1, min(s, max(LEAST_ROWS, K_QS_BYTES // (q * x.element_size()))))
    work = take_workspace(
        core.gram_backward_workspace(*native_code(spec), batch, s, q, d, chunk, z is None, threads), x
    )
    core.gram_backward(
        matrices(x),
        matrices(z),
        matrices(grad),
        hyper_rows(hyper),
        values,
        *native_code(spec),
        capsule(bars[0]),
        capsule(bars[1]),
        capsule(bars[2]),
        to_capsule(work),
        batch,
        s,
        q,
        d,
        chunk,
        threads,
    )
    return_workspace(work)


def _differentiable(ctx: Any, grad: Tensor) -> Any:
    """Compute the gradients by planned PyTorch, which is differentiable and mappable."""

    def first(x: Tensor, z: Tensor | None, hyper: Tensor | None) -> tuple[Tensor, ...]:
        return (planned_gram(x, z, from_spec(ctx.spec, ctx.values if hyper is None else hyper.unbind(-1))),)

    return (*pull_back(first, saved_tensors(ctx), (grad,)), None, None)


def differentiable_gram(x: Tensor, z: Tensor | None, hyper: Tensor | None, values: list[float], spec: str) -> Tensor:
    """Return the Gram matrix, whose first gradient is the core's; the tensors are plain ones on the CPU."""
    k: Tensor = _Gram.apply(x, z, hyper, values, spec)
    return k
