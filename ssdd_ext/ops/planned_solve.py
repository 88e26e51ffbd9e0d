"""One factorisation per problem in PyTorch calls, with a backward from its factor; ``planned`` has the calls around it.

If a backward is itself differentiated, it solves again by differentiable calls.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..kernels import for_matrices, mirrored
from ..plan import planned as orders
from ..reference import cholesky as reference_cholesky
from .factor import factor_backward
from .planned_gram import BatchedFunction
from .register import is_differentiated

# Rows of a panel of the Gram matrix: enough for full-speed products, few enough to save most of the upper half.
PANEL = 256

Number = float | Tensor


def _factorise(a: Tensor, on_failure: str, watched: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return (L, status, jitter) of a [..., n, n], whose lower triangle is read; a failed problem's factor is NaN.

    ``watched=False``: the status is not used, so NaN that LAPACK accepts as a pivot is not searched for.
    """
    if watched or on_failure == "jitter":
        return reference_cholesky(a, on_failure)
    factor, status = torch.linalg.cholesky_ex(a)
    factor = factor.masked_fill_((status != 0)[..., None, None], math.nan)
    return factor, status, a.new_zeros(a.shape[:-2])


def _triangle(x: Tensor) -> Tensor:
    """Return X X^T [..., S, S] of x [..., S, D]; only the lower triangle must be correct."""
    s = x.shape[-2]
    if x.dim() > 2 or torch.compiler.is_compiling() or s < 2 * PANEL:
        # A batch stays one call: splitting it would cost more than the saved half.
        return x @ x.mT
    out = x.new_zeros(s, s)
    for start in range(0, s, PANEL):
        stop = min(start + PANEL, s)
        torch.mm(x[start:stop], x[:stop].mT, out=out[start:stop, :stop])
    return out


def _add_to_diagonal_(a: Tensor, amount: Number) -> Tensor:
    a.diagonal(dim1=-2, dim2=-1).add_(amount[..., None] if isinstance(amount, Tensor) else amount)
    return a


def with_diagonal(a: Tensor, amount: Number) -> Tensor:
    return a + for_matrices(amount) * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _save_fit(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the tensors of the inputs, then the result, its factor and the jitter."""
    result, factor, status, jitter = output
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.save_for_backward(*(v if isinstance(v, Tensor) else None for v in inputs), result, factor, jitter)
    ctx.mark_non_differentiable(factor, status, jitter)
    ctx.set_materialize_grads(False)


def _load_saved(ctx: Any) -> list[Any]:
    """Return the inputs, then the result, its factor and the jitter."""
    saved = checks.saved_tensors(ctx)
    inputs = [other if tensor is None else tensor for other, tensor in zip(ctx.others, saved, strict=False)]
    return [*inputs, *saved[len(ctx.others) :]]


class Factor(BatchedFunction):
    """Computes (L, status, jitter) of a [..., n, n], with PyTorch's own gradient, which ignores autocast."""

    @staticmethod
    def forward(a: Tensor, on_failure: str) -> Any:
        return reference_cholesky(a, on_failure)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(output[0])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        (factor,) = checks.saved_tensors(ctx)
        return None if grad is None else factor_backward(factor, grad), None


class Solve(BatchedFunction):
    """Computes (A^-1 Y, factor, status, jitter) of a [..., n, n] and y [..., n, C].

    ``symmetric``: the gradient to A is symmetrised.
    """

    @staticmethod
    def forward(a: Tensor, y: Tensor, on_failure: str, watched: bool, symmetric: bool) -> Any:
        factor, status, jitter = _factorise(a, on_failure, watched)
        return torch.cholesky_solve(y, factor), factor, status, jitter

    setup_context = staticmethod(_save_fit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 5
        a, y, _, _, symmetric, x, factor, jitter = _load_saved(ctx)
        with checks.full_precision(grad):
            u, x = both(grad, x, factor, lambda: with_diagonal(a, jitter), y, symmetric)
            a_bar = gradient_of_inverse(u, x, symmetric) if ctx.needs_input_grad[0] else None
        return a_bar, u, None, None, None


def gradient_of_inverse(u: Tensor, x: Tensor, symmetric: bool) -> Tensor:
    """Return the gradient to A of x = A^-1 y from u = A^-1 x_bar: -u x^T, or its symmetric part."""
    raw = u @ x.mT
    return -0.5 * (raw + raw.mT) if symmetric else -raw


def both(
    grad: Tensor, x: Tensor, factor: Tensor, matrix: Any, right: Any, symmetric: bool = True
) -> tuple[Tensor, Tensor]:
    """Return (A^-1 grad, x = A^-1 right), from the factor, or as differentiable functions of ``matrix()``."""
    if not is_differentiated():
        return torch.cholesky_solve(grad, factor), x
    a = matrix()
    right = right() if callable(right) else right
    return solve_transposed(a, grad, symmetric), planned_solve(a, right, symmetric=symmetric)


def planned_solve(a: Tensor, y: Tensor, on_failure: str = "nan", symmetric: bool = True) -> Tensor:
    """Return A^-1 Y, differentiable any number of times; NaN for a problem that fails."""
    x: Tensor = Solve.apply(a, y, on_failure, False, symmetric)[0]
    return x


def solve_transposed(a: Tensor, y: Tensor, symmetric: bool, on_failure: str = "nan") -> Tensor:
    """Return A^-T Y, which differs from A^-1 Y in its gradient to A if that is not symmetrised."""
    return planned_solve(a if symmetric else mirrored(a).mT, y, on_failure, symmetric)


class FitDual(BatchedFunction):
    """Computes (alpha, factor, status, jitter) with alpha = (scale X X^T + bias + lambda I)^-1 Y.

    x [..., S, D], y [..., S, C]; scale, bias and lambda are numbers, or tensors of the full batch shape.
    """

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, scale: Number, bias: Number, amount: Number, on_failure: str, watched: bool
    ) -> Any:
        a = _triangle(x)
        if isinstance(scale, Tensor) or scale != 1:
            a.mul_(for_matrices(scale))
        if isinstance(bias, Tensor) or bias != 0:
            a.add_(for_matrices(bias))
        factor, status, jitter = _factorise(_add_to_diagonal_(a, amount), on_failure, watched)
        return torch.cholesky_solve(y, factor), factor, status, jitter

    setup_context = staticmethod(_save_fit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 7
        x, y, scale, bias, amount, _, _, alpha, factor, jitter = _load_saved(ctx)
        need_x, _, need_scale, need_bias, need_amount = ctx.needs_input_grad[:5]

        def matrix() -> Tensor:
            return with_diagonal(for_matrices(scale) * (x @ x.mT) + for_matrices(bias), amount + jitter)

        x_bar = scale_bar = bias_bar = amount_bar = None
        with checks.full_precision(grad):
            u, alpha = both(grad, alpha, factor, matrix, y)
            low_rank = orders.pulls_back_low_rank(x.shape[-2], x.shape[-1], y.shape[-1])
            if need_scale or (need_x and low_rank):
                w, v = alpha.mT @ x, u.mT @ x
            if need_scale:
                scale_bar = -(w * v).sum((-2, -1))
            if need_x and low_rank:
                x_bar = -for_matrices(scale) * (torch.cat((u, alpha), -1) @ torch.cat((w, v), -2))
            elif need_x:
                half = u @ alpha.mT
                x_bar = -for_matrices(scale) * ((half + half.mT) @ x)
            if need_bias:
                bias_bar = -(u.sum(-2) * alpha.sum(-2)).sum(-1)
            if need_amount:
                amount_bar = -(u * alpha).sum((-2, -1))
        return x_bar, u, scale_bar, bias_bar, amount_bar, None, None


class FitPrimal(BatchedFunction):
    """Computes (w, factor, status, jitter) with w = (Phi^T Phi + lambda I)^-1 Phi^T Y, for phi [..., S, n] and y
    [..., S, C]."""

    @staticmethod
    def forward(phi: Tensor, y: Tensor, amount: Number, on_failure: str, watched: bool) -> Any:
        factor, status, jitter = _factorise(_add_to_diagonal_(_triangle(phi.mT), amount), on_failure, watched)
        return torch.cholesky_solve(phi.mT @ y, factor), factor, status, jitter

    setup_context = staticmethod(_save_fit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 5
        phi, y, amount, _, _, w, factor, jitter = _load_saved(ctx)

        def matrix() -> Tensor:
            return with_diagonal(phi.mT @ phi, amount + jitter)

        phi_bar = None
        with checks.full_precision(grad):
            v, w = both(grad, w, factor, matrix, lambda: phi.mT @ y)
            u = phi @ v
            if ctx.needs_input_grad[0]:
                # The residual form is used, as (Y - Phi w) / lambda of the dual formulas would lose the digits.
                phi_bar = torch.cat((y - phi @ w, -u), -1) @ torch.cat((v, w), -1).mT
            amount_bar = -(v * w).sum((-2, -1)) if ctx.needs_input_grad[2] else None
        return phi_bar, u, amount_bar, None, None
