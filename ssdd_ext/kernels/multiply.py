"""Products whose backward keeps their operands' digits, also if it runs under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import full_precision, in_nested_forward_mode, is_transformed, saved_tensors


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b. Under autocast, the backward of a plain product would round to 16 bits."""
    plain = not (a.requires_grad or b.requires_grad) or not torch.is_grad_enabled()
    if plain or torch.compiler.is_compiling() or torch.jit.is_tracing() or in_nested_forward_mode():
        return a @ b
    product: Tensor = (_Product if is_transformed() else _Direct).apply(a, b)
    return product


def mirrored(a: Tensor) -> Tensor:
    """Return the symmetric matrix whose lower triangle is that of ``a``. Its gradient is passed to ``a`` as it is."""
    lower = a.detach().tril()
    # The upper triangle is not read, and may hold anything.
    return lower + lower.tril(-1).mT + torch.nan_to_num(a - a.detach(), 0.0, 0.0, 0.0)


class _Direct(torch.autograd.Function):
    """The same as _Product, for eager mode: a setup_context costs 10 us per call."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _gradients(ctx, grad)


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _gradients(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, a_dot: Tensor | None, b_dot: Tensor | None) -> Tensor | None:
        a, b = saved_tensors(ctx)
        if a_dot is None or b_dot is None:
            return a_dot @ b if a_dot is not None else a @ b_dot if b_dot is not None else None
        return a_dot @ b + a @ b_dot


def _gradients(ctx: Any, grad: Tensor) -> Any:
    a, b = saved_tensors(ctx)
    with full_precision(grad):
        a_bar = _summed(matmul(grad, b.mT), a) if ctx.needs_input_grad[0] else None
        b_bar = _summed(matmul(a.mT, grad), b) if ctx.needs_input_grad[1] else None
    return a_bar, b_bar


def _summed(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient if gradient.shape == like.shape else gradient.sum_to_size(like.shape)
