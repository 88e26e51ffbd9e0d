"""Planned PyTorch: the native core's orders of work in PyTorch calls, for every device that PyTorch has.

It uses one factorisation per problem, a backward from its factor, and the cheapest of dual dense, dual low rank and
primal. Nothing here synchronises with a GPU. A linear kernel is fitted as a whole (:class:`FitDual`,
:class:`FitPrimal`), and its predictions are ordinary products. Every other kernel forms K_ss and K_qs, which autograd
differentiates, around :class:`Solve`. If a backward is itself differentiated, it solves again by differentiable calls:
gradients of any order are right, and only the first is fast.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .. import plan
from ..kernels import RBF, Kernel, Linear, for_matrices, match_parameter, matmul
from ..plan import planned as orders
from ..reference import BAD_PARAMETER
from ..ridge import VECTOR_KINDS, Ridge
from .hyper import number_if_constant
from .planned_gram import gram
from .planned_solve import Factor, FitDual, FitPrimal, Number, Solve, with_diagonal
from .register import in_forward_mode
from .spectrum import per_target_solve


def unavailable() -> str | None:
    """Say why planned PyTorch cannot run here; None if it can."""
    if torch.jit.is_tracing():
        return "torch.jit.trace cannot record its gradients"
    return "planned PyTorch has no forward mode" if in_forward_mode() else None


def cholesky(a: Tensor, on_failure: str = "nan", watched: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return (L, status, jitter) of a [..., S, S]."""
    factor, status, jitter = Factor.apply(a, on_failure)
    return factor, status, jitter


def _parameters(values: tuple[Number, ...], like: Tensor) -> list[Number]:
    """Return hyper-parameters as numbers, or as tensors [...] of the full batch shape in the dtype of ``like``."""
    parameters = [match_parameter(number_if_constant(p, like.device), like) for p in values]
    return [p.expand(like.shape[:-2]) if isinstance(p, Tensor) else p for p in parameters]


def _guard(amount: Number, valid: list[Tensor], like: Tensor) -> tuple[Number, Tensor | None]:
    """Return (lambda, valid [...]). NaN in lambda turns every result of an invalid hyper-parameter into NaN."""
    if not valid:
        return amount, None
    every = valid[0]
    for one in valid[1:]:
        every = every & one
    every = every.expand(like.shape[:-2])
    if not isinstance(amount, Tensor):
        amount = torch.full(like.shape[:-2], amount, dtype=like.dtype, device=like.device)
    return torch.where(every, amount, math.nan), every


def _amount(ridge: Ridge, trace: Any, s: int, like: Tensor) -> tuple[Number, list[Tensor]]:
    """Return (lambda, [in range] if a tensor decides it). ``trace()`` is tr(K_ss) [...], or a number if it is known."""
    (value,) = _parameters((ridge.value,), like)
    amount: Any = value
    if ridge.kind != "absolute":
        with torch.set_grad_enabled(torch.is_grad_enabled() and not ridge.detach):
            total = trace()
        if isinstance(total, Tensor) and ridge.detach:
            total = total.detach()
        amount = value * total if ridge.kind == "trace" else value * total / s
    if isinstance(amount, Tensor):
        amount = amount.expand(like.shape[:-2])
    in_range = [(amount >= 0) & (amount < math.inf)] if isinstance(value, Tensor) else []
    return amount, in_range


def _flag_status(status: Tensor, valid: Tensor | None) -> Tensor:
    return status if valid is None else torch.where(valid, status, BAD_PARAMETER)


def _valid(kernel: Kernel, like: Tensor) -> list[Tensor]:
    """Return whether the hyper-parameters are in range, [...] each; nothing if all are numbers."""
    if not any(isinstance(p, Tensor) for p in kernel.parameters):
        return []
    return kernel.map(lambda p: match_parameter(number_if_constant(p, like.device), like)).in_range()


def cholesky_solve(
    a: Tensor, y: Tensor, ridge: Ridge | None, on_failure: str = "nan", watched: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ((A + lambda I)^-1 Y, status, jitter)."""
    x, _, status, jitter = factored_solve(a, y, ridge, on_failure, watched)
    return x, status, jitter


def factored_solve(
    a: Tensor,
    y: Tensor,
    ridge: Ridge | None,
    on_failure: str = "nan",
    watched: bool = True,
    kernel: Kernel | None = None,
    symmetric: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ((A + lambda I)^-1 Y, factor, status, jitter).

    ``kernel``: the kernel whose hyper-parameters made A, if any. ``symmetric``: the gradient to A is symmetrised.
    """
    if ridge is not None and ridge.kind in VECTOR_KINDS:
        return _vector_solve(a, y, ridge, on_failure, watched, [] if kernel is None else _valid(kernel, a), symmetric)
    s = a.shape[-1]
    amount, valid = (
        (0.0, [])
        if ridge is None
        else _amount(ridge, lambda: float(s) if type(kernel) is RBF else a.diagonal(dim1=-2, dim2=-1).sum(-1), s, a)
    )
    if kernel is not None:
        valid = valid + _valid(kernel, a)
    amount, every = _guard(amount, valid, a)
    if isinstance(amount, Tensor) or amount != 0:
        a = with_diagonal(a, amount)
    x, factor, status, jitter = Solve.apply(a, y, on_failure, watched, symmetric)
    return x, factor, _flag_status(status, every), jitter


def _guard_vector(value: Tensor, valid: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return (one ridge per target or point, valid [...]). The ridge is NaN if a hyper-parameter is out of range."""
    if not valid:
        return value, None
    every = functools.reduce(torch.logical_and, valid)
    return torch.where(every[..., None], value, math.nan), every


def _vector_solve(
    a: Tensor, y: Tensor, ridge: Ridge, on_failure: str, watched: bool, valid: list[Tensor], symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same as :func:`factored_solve` for one ridge per target, whose factor is empty, or per point."""
    value = match_parameter(ridge.value, a)
    assert isinstance(value, Tensor)
    if ridge.kind == "per_target":
        value, every = _guard_vector(value, valid)
        x, status, jitter = per_target_solve(a, y, value, on_failure, symmetric)
        return x, a.new_empty(0), _flag_status(status, every), jitter
    value, every = _guard_vector(value, [((value >= 0) & (value < math.inf)).all(-1), *valid])
    a = a + torch.diag_embed(value.expand(a.shape[:-1]))
    x, factor, status, jitter = Solve.apply(a, y, on_failure, watched, symmetric)
    return x, factor, _flag_status(status, every), jitter


def fit(
    x_s: Tensor, y_s: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str = "nan", watched: bool = True
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
    """Return (alpha [..., S, C] or None, weights [..., D (+1), C] or None, factor, status, jitter).

    The fit is dual or primal, by :func:`is_primal`. The weights are those of Phi = [sqrt(scale) X_s, sqrt(bias) 1].
    """
    if type(kernel) is not Linear or ridge.kind in VECTOR_KINDS:
        k_ss = gram(x_s, None, kernel)
        alpha, factor, status, jitter = factored_solve(k_ss, y_s, ridge, on_failure, watched, kernel)
        return alpha, None, factor, status, jitter
    scale, bias = _parameters(kernel.parameters, x_s)
    s = x_s.shape[-2]

    def trace() -> Tensor:
        return scale * x_s.square().sum((-2, -1)) + bias * s

    amount, valid = _amount(ridge, trace, s, x_s)
    amount, every = _guard(amount, valid + _valid(kernel, x_s), x_s)
    if is_primal(x_s, y_s, kernel):
        phi = features(x_s, scale, bias)
        weights, factor, status, jitter = FitPrimal.apply(phi, y_s, amount, on_failure, watched)
        return None, weights, factor, _flag_status(status, every), jitter
    alpha, factor, status, jitter = FitDual.apply(x_s, y_s, scale, bias, amount, on_failure, watched)
    return alpha, None, factor, _flag_status(status, every), jitter


def is_primal(x_s: Tensor, y_s: Tensor, kernel: Kernel) -> bool:
    """Return True if the factor has order D (+1) instead of S. The root of a bias has no gradient at zero, so a bias
    that is a tensor stays dual."""
    if type(kernel) is not Linear or isinstance(kernel.bias, Tensor):
        return False
    return plan.is_primal(problem(x_s, y_s, 0, kernel))


def problem(x_s: Tensor, y_s: Tensor, q: int, kernel: Kernel) -> plan.Problem:
    """Return the sizes that a plan is made for."""
    linear = type(kernel) is Linear
    bordered = linear and kernel.bias != 0  # type: ignore[attr-defined]
    return plan.Problem(x_s.shape[-2], q, x_s.shape[-1], y_s.shape[-1], linear, bordered, x_s.element_size())


def features(x: Tensor, scale: Number, bias: Number) -> Tensor:
    """Return Phi = [sqrt(scale) X, sqrt(bias) 1] [..., S, D (+1)]; ``bias`` is a number here."""
    assert not isinstance(bias, Tensor)
    if isinstance(scale, Tensor):
        x = x * for_matrices(scale.sqrt())
    elif scale != 1:
        x = x * math.sqrt(scale)
    if bias:
        x = torch.cat((x, x.new_full((*x.shape[:-1], 1), math.sqrt(bias))), -1)
    return x


def krr(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str = "nan", watched: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (P [..., Q, C], status, jitter, factor)."""
    alpha, weights, factor, status, jitter = fit(x_s, y_s, kernel, ridge, on_failure, watched)
    if alpha is None:
        assert weights is not None
        scale, bias = _parameters(kernel.parameters, x_s)
        root = scale.sqrt() if isinstance(scale, Tensor) else math.sqrt(scale)
        d = x_s.shape[-1]
        p = matmul(x_q, for_matrices(root) * weights[..., :d, :])
        if bias:
            p = p + math.sqrt(bias) * weights[..., d:, :]
    elif type(kernel) is Linear and _predicts_low_rank(x_s, y_s, x_q):
        scale, bias = (for_matrices(p) for p in _parameters(kernel.parameters, x_s))
        p = matmul(x_q, scale * matmul(x_s.mT, alpha))
        if isinstance(bias, Tensor) or bias:
            p = p + bias * alpha.sum(-2, keepdim=True)
    else:
        p = matmul(gram(x_q, x_s, kernel), alpha)
    return p, status, jitter, factor


def _predicts_low_rank(x_s: Tensor, y_s: Tensor, x_q: Tensor) -> bool:
    return orders.predicts_low_rank(x_s.shape[-2], x_q.shape[-2], x_s.shape[-1], y_s.shape[-1])


def krr_mse(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor,
    kernel: Kernel,
    ridge: Ridge,
    on_failure: str = "nan",
    watched: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (mean over Q and C of (P - Y_q)^2 [...], status, jitter, factor)."""
    p, status, jitter, factor = krr(x_s, y_s, x_q, kernel, ridge, on_failure, watched)
    return mse_loss(p, y_q, reduction="none").mean((-2, -1)), status, jitter, factor


def explain(x_s: Tensor, y_s: Tensor, x_q: Tensor, kernel: Kernel) -> str:
    """Describe the orders of the products that :func:`krr` would run."""
    described = problem(x_s, y_s, x_q.shape[-2], kernel)
    if plan.is_primal(described) and not is_primal(x_s, y_s, kernel):
        return f"dual, factor of order {described.s} (a bias that is a tensor has no primal here)"
    return orders.describe(described)
