"""Many ridges from one eigendecomposition K = U diag(w) U^T: (K + v I)^-1 = U diag(1 / (w + v)) U^T."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..reference import BAD_PARAMETER, JITTER_STEPS
from .planned_gram import BatchedFunction
from .register import is_differentiated


def _decompose(a: Tensor, shifts: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(w, U, status, jitter) of the lower triangle of a; w is NaN if w + shift is not positive for a shift."""
    bad = ~torch.isfinite(a.detach()).all(-1).all(-1)
    safe = torch.where(bad[..., None, None], torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), a)
    w, u = torch.linalg.eigh(safe)
    least = shifts.detach().amin((-2, -1))
    # What rounding alone may have made of an eigenvalue 0 counts as 0, as a pivot would.
    allowed = torch.finfo(a.dtype).eps * a.shape[-1] * w.abs().amax(-1, keepdim=True)
    jitter = torch.zeros_like(least)
    failed = bad | ~((w + least[..., None]) > allowed).all(-1)
    if on_failure == "jitter":
        mean = a.detach().diagonal(dim1=-2, dim2=-1).mean(-1).abs()
        for step in JITTER_STEPS[a.dtype]:
            jitter = torch.where(failed, step * mean, jitter)
            failed = bad | ~((w + (least + jitter)[..., None]) > allowed).all(-1)
    valid = ((shifts.detach() >= 0) & (shifts.detach() < math.inf)).all(-1).all(-1)
    status = torch.where(valid, failed.int(), BAD_PARAMETER)
    w = torch.where((status != 0)[..., None], math.nan, w + jitter[..., None])
    return w, u, status.int(), jitter


class _Solve(BatchedFunction):
    """(X, w, U, status, jitter) with x[..., r, :, c] = (A + shifts[..., r, c] I)^-1 y[..., r, :, c].

    a [..., S, S], y [..., R or 1, S, C], shifts [..., R, C or 1].
    """

    @staticmethod
    def forward(a: Tensor, y: Tensor, shifts: Tensor, on_failure: str) -> Any:
        w, u, status, jitter = _decompose(a, shifts, on_failure)
        return _apply(w, u, y, shifts), w, u, status, jitter

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        a, y, shifts, _ = inputs
        ctx.save_for_backward(a, y, shifts, *output)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 4
        a, y, shifts, x, w, u, _, jitter = ctx.saved_tensors
        with checks.full_precision(grad):
            if is_differentiated():
                moved = a + jitter[..., None, None] * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
                g, x = (_Solve.apply(moved, right, shifts, "nan")[0] for right in (grad, y))
            else:
                g = _apply(w, u, grad, shifts)
            a_bar = shifts_bar = None
            if ctx.needs_input_grad[0]:
                half = torch.einsum("...rsc,...rtc->...st", g, x)
                a_bar = -0.5 * (half + half.mT)
            if ctx.needs_input_grad[2]:
                shifts_bar = -(g * x).sum(-2)
                shifts_bar = (
                    shifts_bar if shifts.shape[-1] == shifts_bar.shape[-1] else shifts_bar.sum(-1, keepdim=True)
                )
        y_bar = g if y.shape[-3] == g.shape[-3] else g.sum(-3, keepdim=True)
        return a_bar, y_bar, shifts_bar, None


def _apply(w: Tensor, u: Tensor, y: Tensor, shifts: Tensor) -> Tensor:
    u = u.unsqueeze(-3)
    return u @ ((u.mT @ y) / (w[..., None, :, None] + shifts[..., None, :]))


def solve_many(a: Tensor, y: Tensor, shifts: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    """((A + shift I)^-1 Y [..., R, S, C], status [...], jitter [...]) for shifts [..., R, C or 1] and y [..., S, C].

    Differentiable any number of times in all three, also where eigenvalues coincide.
    """
    x, _, _, status, jitter = _Solve.apply(a, y.unsqueeze(-3), shifts, on_failure)
    return x, status, jitter


def per_target_solve(a: Tensor, y: Tensor, value: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    """((A + value[c] I)^-1 y[:, c], status, jitter) for one ridge per target, value [..., C]."""
    x, status, jitter = solve_many(a, y, value.expand(*a.shape[:-2], y.shape[-1]).unsqueeze(-2), on_failure)
    return x.squeeze(-3), status, jitter
