"""Kernel ridge regression: predictions and the mean squared error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, ops
from ..kernels import Kernel
from ..ridge import Ridge
from .call import DEFAULT_KERNEL, DEFAULT_RIDGE, check_problem, prepare


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
    """Kernel ridge regression: P = K_qs (K_ss + lambda I)^-1 Y_s.

    Args:
        x_s: support features [..., S, D]. y_s: targets [..., S, C]. x_q: query features [..., Q, D]. Batch
            dimensions broadcast. float32 or float64; bfloat16/float16 also beside float32, computed in float32.
        kernel: ``Linear(scale, bias)`` (default) or ``RBF(lengthscale)``; numbers, or tensors with gradients that
            broadcast over the batch dimensions.
        ridge: default ``Ridge.trace(1e-6)``, KRR-ST's; see :class:`Ridge` for the others.
        on_failure: "raise" a FactorizationError (one synchronisation on CUDA, refused under graph capture);
            "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a constant
            for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (P, Info(status, jitter)).
        check_finite: refuse NaN and Inf in the inputs.
        backend: "auto" (native where it can run), "native" (an error says why it cannot), "torch" (reference).
        solve_dtype: torch.float64 computes float32 features in float64 and returns float32.

    Returns:
        Predictions [..., Q, C]; an empty result for Q = 0. Each gradient has its input's dtype. Double backward
        and forward mode: backend="torch".
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    tensors = check_problem(x_s, y_s, x_q)
    call = prepare("krr", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, return_info)
    with call.precision(x_s):
        inputs = call.features(x_s), call.cast(y_s), call.features(x_q)
        p, status, jitter = call.run.krr(*inputs, call.kernel, call.ridge, **call.options)
    return call.finish(p, call.checked(status, jitter, x_s.shape[-2]))


def krr_mse(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Mean over Q and C of (P - Y_q)^2 with P of :func:`krr`: the outer loss of KRR-ST (arXiv 2310.06511, eq. 5).

    Args:
        y_q: query targets [..., Q, C]. All others as in :func:`krr`.

    Returns:
        One number a problem, [...]. Q = 0 is an error.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    if backend in ("auto", "native") and not return_info and not check_finite and solve_dtype is None:
        loss = ops.small_krr_mse(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
        if loss is not None:
            return loss
    tensors = check_problem(x_s, y_s, x_q, checks.tensor("y_q", y_q))
    call = prepare("krr_mse", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, return_info)
    with call.precision(x_s):
        inputs = call.features(x_s), call.cast(y_s), call.features(x_q), call.cast(y_q)
        loss, status, jitter = call.run.krr_mse(*inputs, call.kernel, call.ridge, **call.options)
    return call.finish(loss, call.checked(status, jitter, x_s.shape[-2]))


def explain(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor | None = None,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> str:
    """Name the backend and the plan that :func:`krr` (with ``y_q``: :func:`krr_mse`) would run, and why.

    Computes nothing.

    Args:
        x_s, y_s, x_q, y_q: as in :func:`krr` and :func:`krr_mse`; only shapes, dtypes, devices and ``requires_grad``
            matter, so tensors on the "meta" device show what a device without the native core would run.
        kernel, ridge, on_failure, return_info, check_finite, backend, solve_dtype: as in :func:`krr`, same defaults.

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
    if y_q is not None and not (return_info or check_finite or solve_dtype):
        picked = ops.plan_small(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
        if picked is not None:
            order = picked[0][0].n
            return f"native ({call.why}), a small problem: loss and gradients in one call, factor of order {order}"
    return f"native ({call.why}), {ops.explain(a, b, c, call.kernel, call.ridge or ridge)}"


def build_info() -> dict[str, Any]:
    """What this build holds and what this machine runs: version, cuda (bool), instruction_sets (built and supported
    here), instruction_set (in force), compiler, threads."""
    return {**ops.build_info(), "threads": torch.get_num_threads(), "torch": torch.__version__}
