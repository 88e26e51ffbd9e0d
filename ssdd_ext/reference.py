"""The mathematics in plain PyTorch, which the native ops are tested and measured against, and ``backend="torch"``.

Dual form, Cholesky, autograd: it is differentiable any number of times, in forward and reverse mode, on any device and
in float64. The optimised orders of the same products are in ``plan`` and ``csrc/``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import Combination, Kernel, Stationary, for_matrices, match_parameter, mirrored
from .ridge import Ridge

# Status of one problem: 0 is success, k > 0 the 1-based pivot at which the factorisation broke down,
# BAD_PARAMETER a hyper-parameter tensor with a value out of range.
BAD_PARAMETER = -1
# Jitters relative to the mean of the diagonal. on_failure="jitter" tries them in turn if a factorisation fails.
JITTER_STEPS = {torch.float32: (1e-6, 1e-5, 1e-4, 1e-3, 1e-2), torch.float64: (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)}


def gram(x: Tensor, z: Tensor | None, kernel: Kernel) -> Tensor:
    """Return K [..., S, Q] of x [..., S, D] and z [..., Q, D] (x with itself if z is None)."""
    if isinstance(kernel, Combination):
        return kernel.form(x, z, gram)
    parameters = [for_matrices(match_parameter(p, x)) for p in kernel.parameters]
    return kernel.evaluate(x, x if z is None else z, *parameters)


def diagonal(x: Tensor, kernel: Kernel) -> Tensor:
    """Return k(x_i, x_i) [..., S, 1] of x [..., S, D]."""
    if isinstance(kernel, Combination):
        return kernel.form(x, None, lambda x, _, part: diagonal(x, part))
    if isinstance(kernel, Stationary):
        return x.new_ones(*x.shape[:-1], 1)
    points = x.unsqueeze(-2)  # S problems of one point
    parameters = [p[..., None, None, None] if isinstance(p, Tensor) else p for p in kernel.parameters]
    return kernel.evaluate(points, points, *(match_parameter(p, x) for p in parameters)).squeeze(-1)


def cholesky(a: Tensor, on_failure: str = "nan") -> tuple[Tensor, Tensor, Tensor]:
    """Return (L, status, jitter) of a [..., S, S]. The lower triangle is read; failures give NaN, or get a jitter."""
    if not a.shape[-1]:
        return torch.zeros_like(a), a.new_zeros(a.shape[:-2], dtype=torch.int32), a.new_zeros(a.shape[:-2])
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
    x, _, status, jitter = factored_solve(a, y, ridge, on_failure)
    return x, status, jitter


def factored_solve(
    a: Tensor, y: Tensor, ridge: Ridge | None, on_failure: str = "nan", symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ((A + lambda I)^-1 Y, factor, status, jitter). ``symmetric``: the gradient to A is symmetrised."""
    valid: Tensor | None = None
    if ridge is not None and ridge.kind == "per_target":
        return _per_target_solve(a, y, ridge, on_failure, symmetric)
    if ridge is not None:
        shift = ridge.diagonal(a, match_parameter(ridge.value, a))
        if isinstance(ridge.value, Tensor) and isinstance(shift, Tensor):
            valid = ((shift >= 0) & (shift < float("inf"))).all(-1)
        shift = shift[..., None] if isinstance(shift, Tensor) else shift
        a = a + shift * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    factor, status, jitter = cholesky(a, on_failure)
    if valid is not None:
        status = torch.where(valid, status, torch.full_like(status, BAD_PARAMETER))
        factor = torch.where(valid[..., None, None], factor, torch.full_like(factor, float("nan")))
    if symmetric:
        return torch.cholesky_solve(y, factor), factor, status, jitter
    failed = (status != 0)[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    x = torch.linalg.solve(torch.where(failed, eye, mirrored(a) + jitter[..., None, None] * eye), y)
    return torch.where(failed, torch.full_like(x, float("nan")), x), factor, status, jitter


def _per_target_solve(
    a: Tensor, y: Tensor, ridge: Ridge, on_failure: str, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve one problem per target, as a further dimension of the batch."""
    value = match_parameter(ridge.value, a)
    one = Ridge.absolute(value)
    batch = torch.broadcast_shapes(a.shape[:-2], one.value.shape[:-1], y.shape[:-2])  # type: ignore[union-attr]
    many = a.unsqueeze(-3).expand(*batch, y.shape[-1], *a.shape[-2:])
    right = y.mT.unsqueeze(-1).expand(*many.shape[:-1], 1)
    x, factor, status, jitter = factored_solve(many, right, one, on_failure, symmetric)
    worst = torch.where((status < 0).any(-1), status.amin(-1), status.amax(-1))
    failed = (worst != 0)[..., None, None]
    x = torch.where(failed, torch.full_like(x.squeeze(-1), float("nan")), x.squeeze(-1)).mT
    return x, factor, worst, jitter.amax(-1)


def solve_many(a: Tensor, y: Tensor, shifts: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return ((A + shift I)^-1 Y [..., R, S, C], status, jitter), y [..., R or 1, S, C], shifts [..., R, C or 1]."""
    columns, worst, added = [], [], []
    for c in range(y.shape[-1]):
        shift = shifts[..., min(c, shifts.shape[-1] - 1)]
        many = a.unsqueeze(-3).expand(*shift.shape, *a.shape[-2:])
        right = y[..., c : c + 1].expand(*many.shape[:-1], 1)
        x, status, jitter = cholesky_solve(many, right, Ridge.absolute(shift), on_failure)
        columns.append(x)
        worst.append(torch.where((status < 0).any(-1), status.amin(-1), status.amax(-1)))
        added.append(jitter.amax(-1))
    worst_of_all = torch.stack(worst, -1)
    status = torch.where((worst_of_all < 0).any(-1), worst_of_all.amin(-1), worst_of_all.amax(-1))
    x = torch.cat(columns, -1)
    x = torch.where((status != 0)[..., None, None, None], torch.full_like(x, float("nan")), x)
    return x, status, torch.stack(added, -1).amax(-1)


def tridiagonal(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return (T, Q) with A = Q T Q^T, T tridiagonal and Q orthogonal, by Householder reflections, for A [S, S]."""
    s = a.shape[-1]
    t, q = a, torch.eye(s, dtype=a.dtype, device=a.device)
    for i in range(s - 2):
        x = t[i + 1 :, i]
        v = x.clone()
        v[0] += torch.copysign(torch.linalg.vector_norm(x), x[0])
        size = torch.linalg.vector_norm(v)
        if size > 0:
            v = torch.cat((v.new_zeros(i + 1), v / size))
            reflection = torch.eye(s, dtype=a.dtype, device=a.device) - 2 * torch.outer(v, v)
            t, q = reflection @ t @ reflection, q @ reflection
    return t, q


def quadratic(a: Tensor | None, b: Tensor, factor: Tensor) -> Tensor:
    """Return b^T A^-1 b per column of b [..., n, m] from the factor of A, to which the gradient flows; [..., m]."""
    return (b * torch.cholesky_solve(b, factor)).sum(-2)


def log_determinant(a: Tensor | None, factor: Tensor) -> Tensor:
    """Return log det A [...] from the factor of A, to which the gradient flows."""
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def krr(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str = "nan"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (P, status, jitter, factor) with P = K_qs (K_ss + lambda I)^-1 Y_s, [..., Q, C]."""
    k_ss, k_qs = gram(x_s, None, kernel), gram(x_q, x_s, kernel)
    alpha, factor, status, jitter = factored_solve(k_ss, y_s, ridge, on_failure)
    has_tensors = any(isinstance(p, Tensor) for p in kernel.parameters)
    for valid in kernel.map(lambda p: match_parameter(p, x_s)).in_range() if has_tensors else ():
        status = torch.where(valid, status, torch.full_like(status, BAD_PARAMETER))
        alpha = torch.where(valid[..., None, None], alpha, torch.full_like(alpha, float("nan")))
    return k_qs @ alpha, status, jitter, factor


def krr_mse(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str = "nan"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (mean over Q and C of (P - Y_q)^2 [...], status, jitter, factor)."""
    predictions, status, jitter, factor = krr(x_s, y_s, x_q, kernel, ridge, on_failure)
    return (predictions - y_q).square().mean((-2, -1)), status, jitter, factor
