"""Quadratic forms and the determinant from a factor, without a second factorisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from .planned_gram import BatchedFunction
from .planned_solve import planned_solve
from .register import apply, is_differentiated


class _Quadratic(BatchedFunction):
    """Computes b^T A^-1 b per column of b, from the factor of A. ``a`` may be None if it needs no gradient."""

    @staticmethod
    def forward(a: Tensor | None, b: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cholesky_solve(b, factor)
        return torch.linalg.vecdot(b, x, dim=-2), x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        a, b, factor = inputs
        # Only a second derivative reads a and b again.
        ctx.save_for_backward(a, b, factor, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        a, b, factor, x = checks.saved_tensors(ctx)
        if grad is None:
            return None, None, None
        with checks.full_precision(grad):
            again = is_differentiated()
            x = planned_solve(factor @ factor.mT if a is None else a, b) if again else x
            scaled = x * grad.unsqueeze(-2)
            a_bar = -(scaled @ x.mT) if ctx.needs_input_grad[0] else None
            return a_bar, 2 * scaled if again else scaled.mul_(2), None


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


def quadratic(a: Tensor | None, b: Tensor, factor: Tensor) -> Tensor:
    """Return b^T A^-1 b per column of b [..., n, m] from the factor of A [..., n, n], [..., m].

    It has gradients to b and, if it is a tensor, a. They need no further solution.
    """
    value: Tensor = apply(_Quadratic, "a variance from a factor", a, b, factor)[0]
    return value


def log_determinant(a: Tensor | None, factor: Tensor) -> Tensor:
    """Return log det A [...] from the factor of A [..., n, n], with a gradient to a if it is a tensor."""
    value: Tensor = apply(_LogDeterminant, "the determinant of a factor", a, factor)
    return value
