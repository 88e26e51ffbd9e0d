"""Kernel ridge regression: predictions and the mean squared error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, ops
from ..kernels import Kernel
from ..ridge import Ridge
from . import precision
from .call import DEFAULT_KERNEL, DEFAULT_RIDGE, check_problem, mean_over_queries, prepare
from .path import predict_per_target


def krr(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Predict by kernel ridge regression: P = K_qs (K_ss + lambda I)^-1 Y_s.

    Equivalent, in value and gradients, to::

        k_ss, k_qs = gram(x_s, kernel=kernel), gram(x_q, x_s, kernel=kernel)
        lam = ridge.amount(k_ss, ridge.value)
        p = k_qs @ torch.cholesky_solve(y_s, torch.linalg.cholesky(k_ss + lam * torch.eye(S)))

    Args:
        x_s: support features [..., S, D]; float32 or float64, or bfloat16/float16, which are computed in float32.
            Batch dimensions of all inputs broadcast.
        y_s: support targets [..., S, C].
        x_q: query features [..., Q, D].
        kernel: any kernel, such as ``Linear(scale, bias)``; its hyper-parameters are numbers, or tensors [...] with
            gradients that broadcast over the batch dimensions. Default ``Linear()``.
        ridge: how lambda follows from K_ss; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's.
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
        Predictions [..., Q, C]; an empty result for Q = 0. Each gradient has its input's dtype. Gradients of any order;
        from the second on, planned PyTorch computes them. Forward mode: backend="torch".

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    if backend in ("auto", "native") and not return_info and not check_finite and solve_dtype is None:
        direct = ops.eager_krr(x_s, y_s, x_q, None, kernel, ridge, on_failure)
        if direct is not None:
            look_at(x_s, y_s, x_q, kernel, ridge)
            return direct
    tensors = check_problem(x_s, y_s, x_q)
    call = prepare("krr", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, return_info)
    with call.precision(x_s), call.name_failure():
        inputs = call.features(x_s), call.cast(y_s), call.features(x_q)
        if (found := predict_per_target(call, *inputs, backend)) is not None:
            p, status, jitter = found
            factor = None
        else:
            p, status, jitter, factor = call.run.krr(*inputs, call.kernel, call.ridge, **call.krr_options)
    return call.finish(p, call.check_status(status, jitter, x_s.shape[-2], factor))


def krr_mse(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    sample_weight: Tensor | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Compute the mean over Q and C of (P - Y_q)^2 with P of :func:`krr`.

    This is KRR-ST's outer loss (arXiv 2310.06511, eq. 5).
    Equivalent to ``(krr(x_s, y_s, x_q) - y_q).square().mean((-2, -1))``.

    Args:
        x_s: support features [..., S, D]; float32 or float64, or bfloat16/float16, which are computed in float32.
            Batch dimensions of all inputs broadcast.
        y_s: support targets [..., S, C].
        x_q: query features [..., Q, D].
        y_q: query targets [..., Q, C].
        kernel: any kernel, such as ``Linear(scale, bias)``; its hyper-parameters are numbers, or tensors [...] with
            gradients that broadcast over the batch dimensions. Default ``Linear()``.
        ridge: how lambda follows from K_ss; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's.
        sample_weight: weights [..., Q] >= 0 of the query points, with or without gradient; the mean over Q is then
            sum(w * loss) / sum(w). Default None: 1 for each.
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
        One number per problem, [...]. Q = 0 is an error. Gradients as of :func:`krr`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    if (
        backend in ("auto", "native")
        and not return_info
        and not check_finite
        and solve_dtype is None
        and sample_weight is None
    ):
        loss = ops.small_krr_mse(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
        if loss is None and y_q is not None:  # without targets it would return predictions; below, None is an error
            loss = ops.eager_krr(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
        if loss is not None:
            look_at(x_s, y_s, x_q, kernel, ridge)
            return loss
    tensors = check_problem(x_s, y_s, x_q, checks.tensor("y_q", y_q))
    if sample_weight is not None:
        tensors["sample_weight"] = checks.sample_weight(sample_weight, x_q.shape[-2], "x_q")
    call = prepare("krr_mse", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, return_info)
    with call.precision(x_s), call.name_failure():
        inputs = call.features(x_s), call.cast(y_s), call.features(x_q), call.cast(y_q)
        if sample_weight is None:
            loss, status, jitter, factor = call.run.krr_mse(*inputs, call.kernel, call.ridge, **call.krr_options)
        else:
            p, status, jitter, factor = call.run.krr(*inputs[:3], call.kernel, call.ridge, **call.krr_options)
            loss = mean_over_queries((p - inputs[3]).square().mean(-1), tensors["sample_weight"])
    return call.finish(loss, call.check_status(status, jitter, x_s.shape[-2], factor))


def look_at(x_s: Tensor, y_s: Tensor, x_q: Tensor, kernel: Kernel, ridge: Ridge) -> None:
    """Warn if a call that went straight to the core has few right digits. The first call of a site is solved again."""
    if precision.is_new(x_s.dtype, (x_s.shape, kernel.name, ridge.value)):
        with torch.no_grad():
            _, info = krr(x_s, y_s, x_q[..., :1, :], kernel=kernel, ridge=ridge, on_failure="nan", return_info=True)
        precision.warn_if_worthless("krr", info.condition, ridge)


def explain(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor | None = None,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    sample_weight: Tensor | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> str:
    """Name the backend and the plan that :func:`krr` (with ``y_q``: :func:`krr_mse`) would run, and why.

    Computes nothing.

    Args:
        x_s: as in :func:`krr`. Of all tensors only shapes, dtypes, devices and ``requires_grad`` matter, so tensors on
            the "meta" device show what a device without the native core would run.
        y_s: as in :func:`krr`.
        x_q: as in :func:`krr`.
        y_q: as in :func:`krr_mse`. Default None: explain :func:`krr`.
        kernel: as in :func:`krr`, with the same default; so are all other keywords.
        ridge: as in :func:`krr`.
        sample_weight: as in :func:`krr_mse`.
        on_failure: as in :func:`krr`.
        return_info: as in :func:`krr`.
        check_finite: as in :func:`krr`.
        backend: as in :func:`krr`.
        solve_dtype: as in :func:`krr`.

    Returns:
        The backend and why it was picked, the plan of each pass with its order of the factor, and the modelled costs of
        every legal order of the products: multiply-adds on the CPU, microseconds on a GPU.

    Raises:
        TypeError, ValueError: what :func:`krr` would raise for these arguments.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    tensors = check_problem(x_s, y_s, x_q, None if y_q is None else checks.tensor("y_q", y_q))
    call = prepare("explain", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, return_info)
    a, b, c = call.features(x_s), call.cast(y_s), call.features(x_q)
    if call.backend == "torch":
        return f"torch reference ({call.why}): dual, dense, factor of order {x_s.shape[-2]}"
    if call.backend == "planned":
        return f"planned PyTorch ({call.why}): {ops.planned.explain(a, b, c, call.kernel)}"
    if y_q is not None and sample_weight is None and not (return_info or check_finite or solve_dtype):
        picked = ops.plan_small(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
        if picked is not None:
            order = picked[0][0].n
            return f"native ({call.why}), a small problem: loss and gradients in one call, factor of order {order}"
    return f"native ({call.why}), {ops.explain(a, b, c, call.kernel, call.ridge or ridge)}"


def build_info() -> dict[str, Any]:
    """Describe this build of the native core and this machine.

    Returns:
        version; cuda (bool); instruction_sets, built and supported here; instruction_set, the one in use; compiler;
        threads of torch; torch, its version.
    """
    return {**ops.build_info(), "threads": torch.get_num_threads(), "torch": torch.__version__}
