"""Kernel ridge regression: predictions and the mean squared error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, ops, reference
from ..kernels import Kernel
from ..ridge import Ridge
from .call import DEFAULT_RIDGE, NO_KERNEL, check_problem, prepare


def krr(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    *,
    kernel: Kernel = NO_KERNEL,
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
    call = prepare("krr", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype)
    a, b, c = call.features(x_s), call.cast(y_s), call.features(x_q)
    if call.native:
        p, status, jitter = ops.krr(a, b, c, call.hyper, call.values, kernel.name, ridge, on_failure)
    else:
        with checks.full_precision(x_s):
            p, status, jitter = reference.krr(a, b, c, kernel, ridge, call.hyper, call.values, on_failure)
    return call.finish(p, call.checked(status, jitter, x_s.shape[-2]), return_info)


def krr_mse(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor,
    *,
    kernel: Kernel = NO_KERNEL,
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
    if backend != "torch" and not return_info and not check_finite and solve_dtype is None:
        loss = ops.small_krr_mse(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
        if loss is not None:
            return loss
    tensors = check_problem(x_s, y_s, x_q, checks.tensor("y_q", y_q))
    call = prepare("krr_mse", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype)
    a, b, c, d = call.features(x_s), call.cast(y_s), call.features(x_q), call.cast(y_q)
    if call.native:
        loss, status, jitter = ops.krr_mse(a, b, c, d, call.hyper, call.values, kernel.name, ridge, on_failure)
    else:
        with checks.full_precision(x_s):
            loss, status, jitter = reference.krr_mse(a, b, c, d, kernel, ridge, call.hyper, call.values, on_failure)
    return call.finish(loss, call.checked(status, jitter, x_s.shape[-2]), return_info)


def explain(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    *,
    kernel: Kernel = NO_KERNEL,
    backend: str = "auto",
) -> str:
    """What :func:`krr` would run on these tensors, and the costs that it was picked from. Computes nothing.

    Returns:
        The backend (and, where it is the reference, why), the plan of each pass, its order of the factor, and the
        modelled costs of every legal order of the products: multiply-adds on the CPU, microseconds on a GPU.
    """
    tensors = check_problem(x_s, y_s, x_q)
    call = prepare("explain", tensors, kernel, None, "nan", False, backend, None)
    if not call.native:
        return f"torch reference ({ops.unavailable(x_s.device, kernel) or 'asked for'}): dual, dense"
    return ops.explain(x_s, y_s, x_q, call.hyper, call.values, kernel.name)


def build_info() -> dict[str, Any]:
    """What this build holds and what this machine runs: version, cuda (bool), instruction_sets (built and supported
    here), instruction_set (in force), compiler, threads."""
    return {**ops.build_info(), "threads": torch.get_num_threads(), "torch": torch.__version__}
