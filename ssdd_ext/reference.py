"""The mathematics in plain PyTorch, which the native ops are tested and measured against, and ``backend="torch"``.

Dual form, Cholesky, autograd: it is differentiable any number of times, in forward and reverse mode, on any device and
in float64. The optimised orders of the same products are in ``plan`` and ``csrc/``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import Kernel
from .ridge import Ridge

# Status of one problem: 0 is success, k > 0 the 1-based pivot at which the factorisation broke down,
# BAD_PARAMETER a hyper-parameter tensor with a value out of range.
BAD_PARAMETER = -1
# Jitters relative to the mean of the diagonal. on_failure="jitter" tries them in turn if a factorisation fails.
JITTER_STEPS = {torch.float32: (1e-6, 1e-5, 1e-4, 1e-3, 1e-2), torch.float64: (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)}


def match_parameter(parameter: Tensor | float, like: Tensor) -> Tensor | float:
    """Return a hyper-parameter in the dtype and on the device of ``like``; a number stays a number."""
    return parameter.to(like) if isinstance(parameter, Tensor) else parameter


def for_matrices(parameter: Tensor | float) -> Tensor | float:
    """Return a hyper-parameter [...] as [..., 1, 1], to broadcast against matrices; a number stays a number."""
    return parameter[..., None, None] if isinstance(parameter, Tensor) else parameter


def gram(x: Tensor, z: Tensor | None, kernel: Kernel) -> Tensor:
    """Return K [..., S, Q] of x [..., S, D] and z [..., Q, D] (x with itself if z is None)."""
    parameters = [for_matrices(match_parameter(p, x)) for p in kernel.parameters]
    return kernel.evaluate(x, x if z is None else z, *parameters)


def cholesky(a: Tensor, on_failure: str = "nan") -> tuple[Tensor, Tensor, Tensor]:
    """Return (L, status, jitter) of a [..., S, S]. The lower triangle is read; failures give NaN, or get a jitter."""
    # cholesky_ex reads the lower triangle, and its gradient is that of the symmetric matrix it stands for.
    factor, status = torch.linalg.cholesky_ex(a)
    # LAPACK accepts NaN as a pivot. Here it counts as a failure.
    bad_pivots = ~torch.isfinite(factor.detach().diagonal(dim1=-2, dim2=-1))
    status = torch.where((status == 0) & bad_pivots.any(-1), bad_pivots.int().argmax(-1).int() + 1, status)
    jitter = torch.zeros(a.shape[:-2], dtype=a.dtype, device=a.device)
    if on_failure == "jitter":
        mean = a.detach().diagonal(dim1=-2, dim2=-1).mean(-1).abs()
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        for step in JITTER_STEPS[a.dtype]:
            failed = status != 0
            jitter = torch.where(failed, step * mean, jitter)
            # Problems that succeeded keep their jitter, so one batched call serves all.
            factor, status = torch.linalg.cholesky_ex(a + jitter[..., None, None] * eye)
            bad_pivots = ~torch.isfinite(factor.detach().diagonal(dim1=-2, dim2=-1)).any(-1)
            status = torch.where((status == 0) & bad_pivots, torch.ones_like(status), status)
    factor = torch.where((status != 0)[..., None, None], torch.full_like(factor, float("nan")).tril(), factor)
    return factor, status, jitter


def cholesky_solve(a: Tensor, y: Tensor, ridge: Ridge | None, on_failure: str = "nan") -> tuple[Tensor, Tensor, Tensor]:
    """Return ((A + lambda I)^-1 Y, status, jitter) of a [..., S, S], y [..., S, C]; ``ridge=None`` means lambda = 0."""
    valid: Tensor | None = None
    if ridge is not None:
        amount = ridge.amount(a, match_parameter(ridge.value, a))
        if isinstance(ridge.value, Tensor) and isinstance(amount, Tensor):
            valid = (amount >= 0) & (amount < float("inf"))
        a = a + for_matrices(amount) * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    factor, status, jitter = cholesky(a, on_failure)
    if valid is not None:
        status = torch.where(valid, status, torch.full_like(status, BAD_PARAMETER))
        factor = torch.where(valid[..., None, None], factor, torch.full_like(factor, float("nan")))
    return torch.cholesky_solve(y, factor), status, jitter


def krr(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str = "nan"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (P, status, jitter) with P = K_qs (K_ss + lambda I)^-1 Y_s, [..., Q, C]."""
    k_ss, k_qs = gram(x_s, None, kernel), gram(x_q, x_s, kernel)
    alpha, status, jitter = cholesky_solve(k_ss, y_s, ridge, on_failure)
    if any(isinstance(p, Tensor) for p in kernel.parameters):
        valid = torch.as_tensor(kernel.valid(*(match_parameter(p, x_s) for p in kernel.parameters)))
        status = torch.where(valid, status, torch.full_like(status, BAD_PARAMETER))
        alpha = torch.where(valid[..., None, None], alpha, torch.full_like(alpha, float("nan")))
    return k_qs @ alpha, status, jitter


def krr_mse(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str = "nan"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean over Q and C of (P - Y_q)^2 [...], status, jitter)."""
    predictions, status, jitter = krr(x_s, y_s, x_q, kernel, ridge, on_failure)
    return (predictions - y_q).square().mean((-2, -1)), status, jitter
