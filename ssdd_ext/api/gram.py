"""Gram matrices, Cholesky factors and solves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, ops
from ..kernels import Kernel
from ..ridge import Ridge
from . import precision
from .call import DEFAULT_KERNEL, Call, Info, prepare


def gram(
    x: Tensor,
    z: Tensor | None = None,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the Gram matrix K = k(x, z).

    Equivalent to ``scale * x @ z.mT + bias`` for ``Linear(scale, bias)`` and to
    ``torch.exp(-torch.cdist(x, z) ** 2 / (2 * lengthscale ** 2))`` for ``RBF(lengthscale)``.

    Args:
        x: features [..., S, D]; float32 or float64, or bfloat16/float16 (accumulated and returned in float32).
        z: features [..., Q, D]. Default None: x itself, computed as one triangle and mirrored.
        kernel: any kernel, such as ``Linear(scale, bias)``; its hyper-parameters are numbers, or tensors [...] with
            gradients that broadcast over the batch dimensions. Default ``Linear()``.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        [..., S, S], or [..., S, Q] with ``z``. Differentiable in x, z and tensor hyper-parameters.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if backend in ("auto", "native") and not check_finite and solve_dtype is None:
        direct = ops.eager_gram(x, z, kernel)
        if direct is not None:
            return direct
    tensors = {"x": checks.tensor("x", x)}
    if z is not None:
        tensors["z"] = checks.tensor("z", z)
        checks.size("z", z, -1, x.shape[-1], "x")
    other = x if z is None else z
    checks.product_fits(S=max(1, x.shape[-2]), Q=max(1, other.shape[-2]), batch=max(1, x.shape[:-2].numel()))
    call = prepare("gram", tensors, kernel, None, "nan", check_finite, backend, solve_dtype)
    with call.precision(x):
        k = call.gram(call.features(x), None if z is None else call.features(z))
    return k if k.dtype == call.result else k.to(call.result)


def cholesky(
    a: Tensor,
    *,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Compute the lower Cholesky factor L with L L^T = A.

    Equivalent to ``torch.linalg.cholesky(a)``.

    Args:
        a: symmetric positive definite [..., S, S], float32 or float64 (16-bit types are computed in float32). Only the
            lower triangle is read, and the gradient is that of the symmetric matrix it stands for.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (L, Info(status, jitter, condition)). Default False.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference, whose backward inside ``torch.autocast`` rounds to 16 bits; the others keep
            their digits there). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        [..., S, S], zero above the diagonal.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    if backend in ("auto", "native") and not return_info and not check_finite and solve_dtype is None:
        direct = ops.eager_cholesky(a, None, None, on_failure)
        if direct is not None:
            return direct
    tensors = {"a": checks.tensor("a", a)}
    checks.square("a", a)
    call = prepare(
        "cholesky", tensors, DEFAULT_KERNEL, None, on_failure, check_finite, backend, solve_dtype, return_info
    )
    with call.name_failure():
        factor, status, jitter = call.run.cholesky(call.cast(a), **call.options)
    return call.finish(factor, call.check_status(status, jitter, a.shape[-1], factor))


def cholesky_solve(
    a: Tensor,
    y: Tensor,
    *,
    ridge: Ridge | None = None,
    symmetric_grad: bool = True,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Solve (A + lambda I) X = Y for Gram matrices A.

    Equivalent to ``torch.cholesky_solve(y, torch.linalg.cholesky(a + lam * torch.eye(S)))`` with
    ``lam = ridge.amount(a, ridge.value)``. Differentiable in a, y and a tensor ridge, from one factorisation.

    Args:
        a: [..., S, S], symmetric; its lower triangle is read. float32 or float64 (16-bit types: in float32).
        y: right-hand sides [..., S, C].
        ridge: how lambda follows from A; see :class:`Ridge`. Default None: lambda = 0.
        symmetric_grad: True (default) symmetrises the gradient to a: half of the sum of the raw one and its transpose.
            False returns the raw one, that of ``torch.linalg.solve``.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (X, Info(status, jitter, condition)). Default False.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference, whose backward inside ``torch.autocast`` rounds to 16 bits; the others keep
            their digits there). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        X [..., S, C].

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    if backend in ("auto", "native") and not return_info and not check_finite and solve_dtype is None and y is not None:
        direct = ops.eager_cholesky(a, y, ridge, on_failure)
        if direct is not None:
            if precision.is_new(a.dtype, (a.shape, None if ridge is None else ridge.value)):
                with torch.no_grad():
                    _, info = cholesky_solve(a, y[..., :1], ridge=ridge, on_failure="nan", return_info=True)
                precision.warn_if_worthless("cholesky_solve", info.condition, ridge)
            return direct
    tensors = {"a": checks.tensor("a", a), "y": checks.tensor("y", y)}
    checks.square("a", a)
    checks.not_empty("a", a, -1, "row")
    checks.size("y", y, -2, a.shape[-1], "a")
    call = prepare(
        "cholesky_solve", tensors, DEFAULT_KERNEL, ridge, on_failure, check_finite, backend, solve_dtype, return_info
    )
    x, info = solve(call, call.cast(a), call.cast(y), symmetric_grad)
    return call.finish(x, info)


def solve(call: Call, a: Tensor, y: Tensor, symmetric: bool = True) -> tuple[Tensor, Info]:
    """Return (A + lambda I)^-1 Y in the dtype of the computation. Rounding it before the next products would lose
    the digits of ``solve_dtype``."""
    x, _, info = factored_solve(call, a, y, symmetric)
    return x, info


def factored_solve(call: Call, a: Tensor, y: Tensor, symmetric: bool = True) -> tuple[Tensor, Tensor, Info]:
    """Return the same as :func:`solve`, with the factor of A + lambda I after the solution."""
    with call.precision(a), call.name_failure():
        x, factor, status, jitter = call.run.factored_solve(a, y, call.ridge, symmetric=symmetric, **call.options)
    return x, factor, call.check_status(status, jitter, a.shape[-1], factor)
