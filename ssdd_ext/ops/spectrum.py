"""Many ridges from one decomposition: K = U diag(w) U^T, (K + v I)^-1 = U diag(1 / (w + v)) U^T, or K = Q T Q^T
(``tridiagonal``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..reference import BAD_PARAMETER, JITTER_STEPS
from .planned_gram import BatchedFunction
from .register import apply, is_transformed
from .tridiagonal import Tridiagonal, runs_on_core, tridiagonal

# product(a, b): a b^T
_MANY = "the solutions for many ridges"
Product = Callable[[Tensor, Tensor], Tensor]


class Eigen(NamedTuple):
    """The eigenvalues w [..., S] and eigenvectors U [..., S, S] of A."""

    w: Tensor
    u: Tensor

    @property
    def bounds(self) -> Tensor:
        return self.w

    def shifted(self, amount: Tensor) -> Eigen:
        """Return those of A + amount I, for amount [...]."""
        return self._replace(w=self.w + amount[..., None])


class Decomposition(NamedTuple):
    """A matrix A [..., S, S] in a form that solves for many shifts; NaN if it failed.

    It is a constant for the gradient; :func:`solve_many` has the gradient. On the CPU the form is tridiagonal, unless
    something other than autograd observes the call.
    """

    form: Tridiagonal | Eigen
    added: Tensor
    """What was added to the diagonal [...]: the jitter, or NaN for a problem that failed."""

    @property
    def bounds(self) -> Tensor:
        """Values [..., 2 or S] whose smallest and largest are the smallest and the largest eigenvalue."""
        return self.form.bounds

    def eigen(self, a: Tensor) -> Eigen:
        """Return the eigenvalues and eigenvectors of the same matrix."""
        if isinstance(self.form, Eigen):
            return self.form
        a = a.detach()
        return _eigen(a, _is_finite(a)).shifted(self.added)


def _eigen(a: Tensor, good: Tensor) -> Eigen:
    return Eigen(*torch.linalg.eigh(_finite(a, good)))


def _is_finite(a: Tensor) -> Tensor:
    return torch.isfinite(a.abs().amax((-2, -1)))


def _finite(a: Tensor, good: Tensor) -> Tensor:
    """Return a, with the unit matrix in the place of one that is not finite."""
    return torch.where(good[..., None, None], a, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))


def decompose(a: Tensor, shifts: Tensor, on_failure: str) -> tuple[Decomposition, Tensor, Tensor]:
    """Return (decomposition, status, jitter) of the lower triangle of a [..., S, S], for shifts [..., R, C or 1].

    A problem fails if an eigenvalue plus a shift is not positive.
    """
    a, shifts = a.detach(), shifts.detach()
    good = _is_finite(a)
    bad = ~good
    if runs_on_core(a, shifts):
        form: Any = tridiagonal(a if bool(good.all()) else _finite(a, good))
    else:
        form = _eigen(a, good)
    w = form.bounds
    least = shifts.amin((-2, -1))
    # An eigenvalue as small as the rounding error of 0 counts as 0, as a pivot would.
    allowed = torch.finfo(a.dtype).eps * a.shape[-1] * w.abs().amax(-1, keepdim=True)
    jitter = torch.zeros_like(least)
    failed = bad | ~((w + least[..., None]) > allowed).all(-1)
    if on_failure == "jitter":
        mean = a.diagonal(dim1=-2, dim2=-1).mean(-1).abs()
        for step in JITTER_STEPS[a.dtype]:
            jitter = torch.where(failed, step * mean, jitter)
            failed = bad | ~((w + (least + jitter)[..., None]) > allowed).all(-1)
    valid = ((shifts >= 0) & (shifts < math.inf)).all(-1).all(-1)
    status = torch.where(valid, failed.int(), BAD_PARAMETER)
    added = torch.where(status != 0, math.nan, jitter)
    return Decomposition(form.shifted(added), added), status.int(), jitter


class _Solve(BatchedFunction):
    """Computes x[..., r, :, c] = (A + shifts[..., r, c] I)^-1 y[..., r, :, c], from the decomposition (w, U) of A.

    a [..., S, S], y [..., R or 1, S, C], shifts [..., R, C or 1]. The backward is that of a solution, so eigenvalues
    may coincide, and gradients of any order use the same decomposition.
    """

    @staticmethod
    def forward(a: Tensor, y: Tensor, shifts: Tensor, w: Tensor, u: Tensor, symmetric: bool) -> Tensor:
        return _apply(w, u, y, shifts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.symmetric = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, y, shifts, w, u, x = checks.saved_tensors(ctx)
        return _pull_back(
            ctx, a, y, shifts, x, grad, lambda a, g: apply(_Solve, _MANY, a, g, shifts, w, u, ctx.symmetric)
        )


class _SolveByForm(BatchedFunction):
    """The same from a tridiagonal form; from eigenvectors if something other than autograd observes the call."""

    @staticmethod
    def forward(a: Tensor, y: Tensor, shifts: Tensor, found: Decomposition, symmetric: bool) -> Tensor:
        form = found.form
        assert isinstance(form, Tridiagonal)
        if runs_on_core(y, shifts) and y.shape[:-3] == form.batch == shifts.shape[:-2]:
            return form.solve(y, shifts)
        return _apply(*found.eigen(a), y, shifts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.found, ctx.symmetric = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, y, shifts, x = checks.saved_tensors(ctx)

        def solve(a: Tensor, g: Tensor) -> Any:
            return apply(_SolveByForm, _MANY, a, g, shifts, ctx.found, ctx.symmetric)

        return _pull_back(ctx, a, y, shifts, x, grad, solve)


def _by_points(g: Tensor) -> Tensor:
    """Return g [..., R, S, C] as [..., S, R C]."""
    moved = g.movedim(-3, -2)
    # A batched gradient of autograd cannot be flattened; it can be reshaped.
    return moved.reshape(*moved.shape[:-2], moved.shape[-2] * moved.shape[-1])


def _pull_back(ctx: Any, a: Tensor, y: Tensor, shifts: Tensor, x: Tensor, grad: Tensor, solve: Any) -> Any:
    """Return the gradients of x = (A + shift I)^-1 y to a, y and shifts, and None for what is left."""
    with checks.full_precision(grad):
        # The decomposition has the values; a matters for the gradient of this alone.
        g = solve(a if ctx.symmetric else a.mT, grad)
        a_bar = shifts_bar = None
        if ctx.needs_input_grad[0]:
            half = _by_points(g) @ _by_points(x).mT
            a_bar = -0.5 * (half + half.mT) if ctx.symmetric else -half
        if ctx.needs_input_grad[2]:
            shifts_bar = -(g * x).sum(-2)
            if shifts.shape[-1] != shifts_bar.shape[-1]:
                shifts_bar = shifts_bar.sum(-1, keepdim=True)
    y_bar = g if y.shape[-3] == g.shape[-3] else g.sum(-3, keepdim=True)
    return a_bar, y_bar, shifts_bar, *(None,) * (len(ctx.needs_input_grad) - 3)


def _apply(w: Tensor, u: Tensor, y: Tensor, shifts: Tensor) -> Tensor:
    u = u.unsqueeze(-3)
    return u @ ((u.mT @ y) / (w[..., None, :, None] + shifts[..., None, :]))


def solve_many(a: Tensor, y: Tensor, shifts: Tensor, found: Decomposition, symmetric: bool = True) -> Tensor:
    """Return (A + shift I)^-1 Y [..., R, S, C] for shifts [..., R, C or 1] and y [..., R or 1, S, C].

    It is differentiable any number of times in the first three, also if eigenvalues coincide. ``symmetric``: the
    gradient to A is symmetrised.
    """
    if isinstance(found.form, Eigen):
        x: Tensor = apply(_Solve, _MANY, a, y, shifts, *found.form, symmetric)
    else:
        x = apply(_SolveByForm, _MANY, a, y, shifts, found, symmetric)
    return x


def predict_many(k_qs: Tensor, y: Tensor, shifts: Tensor, found: Decomposition, product: Product) -> Tensor:
    """Return K_qs (A + shift I)^-1 Y [..., R, Q, C] for shifts [..., R, C or 1], without a gradient.

    ``product(a, b)`` computes a b^T. If the targets share their shifts, one product serves all ridges; the shifts scale
    its smaller side.
    """
    if isinstance(found.form, Tridiagonal):
        return found.form.predict(k_qs, y, shifts, product)
    w, u = found.form
    left, right = product(k_qs, u.mT), product(y.mT, u.mT)  # [..., Q, S], [..., C, S]
    q, c, r = left.shape[-2], right.shape[-2], shifts.shape[-2]
    inverse = (w[..., None, None, :] + shifts.unsqueeze(-1)).reciprocal()  # [..., R, C or 1, S]
    if shifts.shape[-1] > 1:
        return left.unsqueeze(-3) @ (right.unsqueeze(-3) * inverse).mT
    if q <= c:
        return product((left.unsqueeze(-3) * inverse).flatten(-3, -2), right).unflatten(-2, (r, q))
    every = product(left, (right.unsqueeze(-3) * inverse).flatten(-3, -2))
    return every.unflatten(-1, (r, c)).movedim(-2, -3)


def inverse_diagonals(a: Tensor, shifts: Tensor, found: Decomposition) -> Tensor:
    """Return the diagonals of (A + shift I)^-1, [..., R, S, 1 or C], for shifts [..., R, 1 or C]."""
    follows = torch.is_grad_enabled() and (a.requires_grad or shifts.requires_grad)
    if not follows and not is_transformed():
        w, u = found.eigen(a)
        return u.square().unsqueeze(-3) @ (1 / (w[..., None, :, None] + shifts[..., None, :]))
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(*a.shape[:-2], 1, *a.shape[-2:])
    # One column of shifts at a time, as each computes all inverses.
    columns = [solve_many(a, eye, one, found).diagonal(dim1=-2, dim2=-1) for one in shifts.split(1, -1)]
    return torch.stack(columns, -1)


def per_target_solve(
    a: Tensor, y: Tensor, value: Tensor, on_failure: str, symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ((A + value[c] I)^-1 y[:, c], status, jitter) for one ridge per target, value [..., C]."""
    shifts = value.expand(*a.shape[:-2], y.shape[-1]).unsqueeze(-2)
    found, status, jitter = decompose(a, shifts, on_failure)
    return solve_many(a, y.unsqueeze(-3), shifts, found, symmetric).squeeze(-3), status, jitter
