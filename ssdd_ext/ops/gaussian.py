"""Further solutions and the determinant from a factor, without a second factorisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from .planned_gram import BatchedFunction
from .planned_solve import both, planned_solve
from .register import apply, is_differentiated


class _SolveAgain(BatchedFunction):
    """Computes A^-1 B from the factor of A. ``a`` may be None if it needs no gradient."""

    @staticmethod
    def forward(a: Tensor | None, b: Tensor, factor: Tensor) -> Tensor:
        return torch.cholesky_solve(b, factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b, factor, x = checks.saved_tensors(ctx)
        with checks.full_precision(grad):
            u, x = both(grad, x, factor, lambda: factor @ factor.mT if a is None else a, b)
            half = u @ x.mT if ctx.needs_input_grad[0] else None
        return None if half is None else -0.5 * (half + half.mT), u, None


class _LogDeterminant(BatchedFunction):
    """Computes log det A [...] from the factor of A."""

    @staticmethod
    def forward(a: Tensor | None, factor: Tensor) -> Tensor:
        return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, factor = checks.saved_tensors(ctx)
        if not ctx.needs_input_grad[0]:
            return None, None
        with checks.full_precision(grad):
            if is_differentiated():
                eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
                inverse = planned_solve(a, eye)
            else:
                inverse = torch.cholesky_inverse(factor)
        return grad[..., None, None] * inverse, None


def solve_again(a: Tensor | None, b: Tensor, factor: Tensor) -> Tensor:
    """Return A^-1 B [..., n, m] from the factor of A [..., n, n], with gradients to b and, if it is a tensor, a."""
    x: Tensor = apply(_SolveAgain, "a solution from a factor", a, b, factor)
    return x


def log_determinant(a: Tensor | None, factor: Tensor) -> Tensor:
    """Return log det A [...] from the factor of A [..., n, n], with a gradient to a if it is a tensor."""
    value: Tensor = apply(_LogDeterminant, "the determinant of a factor", a, factor)
    return value
