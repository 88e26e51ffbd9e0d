"""Double backward of the native ops: the gradients that they computed, differentiated by planned PyTorch.

The first backward stays native. If it is differentiated, the same gradients are computed again, by calls that are
differentiable any number of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import Kernel, from_spec
from ..ridge import Ridge
from . import planned
from .planned_solve import gradient_of_inverse, solve_transposed, with_diagonal

Tensors = tuple[Tensor, ...]


def pull_back(first: Callable[..., Tensors], tensors: Sequence[Tensor | None], bars: Sequence[Tensor | None]) -> Any:
    """Return the gradients of <bars, first(*tensors)> to the tensors; None for one that is None."""
    present = [t for t in tensors if t is not None]

    def of_present(*values: Tensor) -> Tensors:
        left = iter(values)
        return first(*(None if t is None else next(left) for t in tensors))

    vjp: Any = torch.func.vjp
    results, pull = vjp(of_present, *present)
    gradients = iter(pull(tuple(torch.zeros_like(r) if b is None else b for r, b in zip(results, bars, strict=True))))
    return [None if t is None else next(gradients) for t in tensors]


def unpack(name: str, ridge: str, detach: bool, hyper: Tensor | None, values: Sequence[Any]) -> tuple[Kernel, Ridge]:
    """Return the kernel and the ridge whose hyper-parameters an op received, the ridge's last."""
    *own, amount = values if hyper is None else hyper.unbind(-1)
    return from_spec(name, own), Ridge(ridge, amount, detach)


def krr_gradients(
    grad: Tensor,
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    residual: Tensor | None,
    hyper: Tensor | None,
    values: Sequence[float],
    kernel: str,
    ridge: str,
    detach: bool,
    y_q: Tensor | None = None,
) -> Tensors:
    """Compute all that the op krr_backward computes: gradients to x_s, y_s, x_q and, if it is a tensor, hyper.

    For the mean squared error, pass the residual, which also depends on the predictions, or the targets ``y_q``.
    """

    def predict(x_s: Tensor, y_s: Tensor, x_q: Tensor, *more: Tensor) -> Tensor:
        own = unpack(kernel, ridge, detach, more[0] if more else None, values)
        p: Tensor = planned.krr(x_s.to(y_s.dtype), y_s, x_q.to(y_s.dtype), *own, "jitter")[0]
        return p

    vjp: Any = torch.func.vjp
    p, pull = vjp(predict, x_s, y_s, x_q, *(() if hyper is None else (hyper,)))
    if residual is not None or y_q is not None:
        moving = p - y_q if residual is None else residual + (p - p.detach())
        grad = moving * (grad * (2.0 / (p.shape[-1] * p.shape[-2])))[..., None, None]
    gradients: Tensors = pull(grad)
    return gradients


def mark_failed(grad: Tensor, factor: Tensor) -> Tensor:
    """Return ``grad`` with NaN for the problems whose factorisation failed, as those are solved again with jitter."""
    failed = factor.diagonal(dim1=-2, dim2=-1).sum(-1).isnan()
    return torch.where(failed.reshape(failed.shape + (1,) * (grad.dim() - failed.dim())), math.nan, grad)


def solve_gradients(
    grad: Tensor,
    x: Tensor,
    a: Tensor,
    hyper: Tensor | None,
    values: Sequence[float],
    ridge: str,
    detach: bool,
    symmetric: bool,
) -> Tensors:
    """Compute what the op solve_backward computes from the solution x: gradients to a, y and any tensor hyper."""

    def matrix(a: Tensor, *more: Tensor) -> Tensor:
        if not ridge:
            return a
        value = more[0][..., -1] if more else values[-1]
        amount: Any = Ridge(ridge, value, detach).amount(a, value)
        return with_diagonal(a, amount)

    vjp: Any = torch.func.vjp
    regularised, pull = vjp(matrix, a, *(() if hyper is None else (hyper,)))
    u = solve_transposed(regularised, grad, symmetric, "jitter")
    a_bar, *more = pull(gradient_of_inverse(u, x, symmetric))
    return a_bar, u, *more
