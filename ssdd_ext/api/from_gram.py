"""Kernel ridge regression on given Gram matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .. import checks, ops
from ..kernels import matmul
from ..ridge import Ridge
from .call import DEFAULT_KERNEL, DEFAULT_RIDGE, Call, Info, mean_over_queries, prepare
from .gram import solve


def krr_from_gram(
    k_ss: Tensor,
    y_s: Tensor,
    k_qs: Tensor,
    *,
    ridge: Ridge | None = None,
    symmetric_grad: bool = True,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Predict as :func:`krr` from given Gram matrices (KIP's infinite-width kernels).

    Equivalent to ``k_qs @ torch.cholesky_solve(y_s, torch.linalg.cholesky(k_ss + lam * torch.eye(S)))`` with
    ``lam = ridge.amount(k_ss, ridge.value)``.

    Args:
        k_ss: [..., S, S], symmetric; its lower triangle is read. float32 or float64 (16-bit types: in float32).
        y_s: support targets [..., S, C].
        k_qs: [..., Q, S].
        ridge: how lambda follows from K_ss; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's.
        symmetric_grad: True (default) symmetrises the gradient to k_ss: half of the sum of the raw one and its
            transpose. False returns the raw one, that of ``torch.linalg.solve``.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (P, Info(status, jitter, condition)). Default False.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference, whose backward inside ``torch.autocast`` rounds to 16 bits; the others keep
            their digits there). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        Predictions [..., Q, C], differentiable in k_ss, y_s, k_qs and a tensor ridge.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    if (
        backend in ("auto", "native")
        and symmetric_grad
        and not return_info
        and not check_finite
        and solve_dtype is None
    ):
        direct = ops.eager_from_gram(k_ss, y_s, k_qs, None, ridge, on_failure)
        if direct is not None:
            return direct
    options = ridge, symmetric_grad, on_failure, check_finite, backend, solve_dtype, return_info
    call, p, info = _predict("krr_from_gram", k_ss, y_s, k_qs, *options)
    return call.finish(p, info)


def krr_mse_from_gram(
    k_ss: Tensor,
    y_s: Tensor,
    k_qs: Tensor,
    y_q: Tensor,
    *,
    ridge: Ridge | None = None,
    sample_weight: Tensor | None = None,
    symmetric_grad: bool = True,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Compute the loss of :func:`krr_mse` from given Gram matrices.

    Equivalent to ``(krr_from_gram(k_ss, y_s, k_qs) - y_q).square().mean((-2, -1))``.

    Args:
        k_ss: [..., S, S], symmetric; its lower triangle is read. float32 or float64 (16-bit types: in float32).
        y_s: support targets [..., S, C].
        k_qs: [..., Q, S].
        y_q: query targets [..., Q, C].
        ridge: how lambda follows from K_ss; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's.
        sample_weight: weights [..., Q] >= 0 of the query points, with or without gradient; the mean over Q is then
            sum(w * loss) / sum(w). Default None: 1 for each.
        symmetric_grad: True (default) symmetrises the gradient to k_ss: half of the sum of the raw one and its
            transpose. False returns the raw one, that of ``torch.linalg.solve``.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (loss, Info(status, jitter, condition)). Default False.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference, whose backward inside ``torch.autocast`` rounds to 16 bits; the others keep
            their digits there). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        One number per problem, [...], differentiable in all four tensors and a tensor ridge.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    asks_more = (
        not symmetric_grad or return_info or check_finite or solve_dtype is not None or sample_weight is not None
    )
    if backend in ("auto", "native") and not asks_more and y_q is not None:
        direct = ops.eager_from_gram(k_ss, y_s, k_qs, y_q, ridge, on_failure)
        if direct is not None:
            return direct
    tensors = {n: checks.tensor(n, t) for n, t in (("k_ss", k_ss), ("y_s", y_s), ("k_qs", k_qs), ("y_q", y_q))}
    checks.size("y_q", y_q, -2, k_qs.shape[-2], "k_qs")
    checks.not_empty("k_qs", k_qs, -2, "query point (the mean over none is undefined)")
    checks.size("y_q", y_q, -1, y_s.shape[-1], "y_s")
    checks.not_empty("y_s", y_s, -1, "target (the mean over none is undefined)")
    weights = None if sample_weight is None else checks.sample_weight(sample_weight, k_qs.shape[-2], "k_qs")
    checks.same_device(k_ss=k_ss, y_q=y_q, sample_weight=weights)
    checks.batch_shape(**{n: t.shape[:-2] for n, t in tensors.items()})
    if check_finite:
        checks.finite(y_q=y_q)
    checks.work_dtype(solve_dtype, k_qs=k_qs, y_q=y_q)
    options = ridge, symmetric_grad, on_failure, check_finite, backend, solve_dtype, return_info
    call, p, info = _predict("krr_mse_from_gram", k_ss, y_s, k_qs, *options)
    y = y_q.to(p.dtype)
    if weights is None and p.dim() == 2 and y.dim() == 2 and not checks.is_transformed():
        # One problem, in one pass; y_q alone may have batch dimensions. PyTorch's mse_loss fails under vmap of vmap.
        loss = mse_loss(p, y)
    else:
        loss = mean_over_queries((p - y).square().mean(-1), weights)
    return call.finish(loss, info)


def _predict(
    op: str,
    k_ss: Tensor,
    y_s: Tensor,
    k_qs: Tensor,
    ridge: Ridge,
    symmetric_grad: bool,
    on_failure: str,
    check_finite: bool,
    backend: str,
    solve_dtype: torch.dtype | None,
    return_info: bool,
) -> tuple[Call, Tensor, Info]:
    """Return the call, the predictions in the dtype of the computation, and the outcome."""
    tensors = {
        "k_ss": checks.tensor("k_ss", k_ss),
        "y_s": checks.tensor("y_s", y_s),
        "k_qs": checks.tensor("k_qs", k_qs),
    }
    checks.square("k_ss", k_ss)
    checks.not_empty("k_ss", k_ss, -1, "support point")
    checks.size("y_s", y_s, -2, k_ss.shape[-1], "k_ss")
    checks.size("k_qs", k_qs, -1, k_ss.shape[-1], "k_ss")
    call = prepare(op, tensors, DEFAULT_KERNEL, ridge, on_failure, check_finite, backend, solve_dtype, return_info)
    # K_qs bar = P bar alpha^T is dense in every plan, so torch's product is used.
    alpha, info = solve(call, call.cast(k_ss), call.cast(y_s), symmetric_grad)
    with checks.full_precision(k_qs):
        return call, _times(call.cast(k_qs), alpha), info


def _times(k_qs: Tensor, alpha: Tensor) -> Tensor:
    """Return K_qs alpha.

    On the CPU it is formed as P^T = alpha^T K_qs^T with column-major coefficients. With few columns a BLAS then takes
    a third of the time in both passes, and the gradient to K_qs has the layout of K_qs.
    """
    if k_qs.is_cuda or k_qs.dim() != 2:
        return matmul(k_qs, alpha)
    return matmul(alpha.mT.contiguous(), k_qs.mT).mT
