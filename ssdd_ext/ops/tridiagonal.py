"""Many ridges from one tridiagonal form A = Q T Q^T on the core: (A + v I)^-1 = Q (T + v I)^-1 Q^T.

The reduction costs a fifth of an eigendecomposition, and each solve with T + v I is linear in S. For plain tensors on
the CPU; all else takes the eigendecomposition of ``spectrum``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .native import core, matrices, return_workspace, take_workspace, to_capsule
from .register import is_plain_call

_DTYPES = (torch.float32, torch.float64)


def runs_on_core(*tensors: Tensor) -> bool:
    """Return True for plain float tensors on the CPU whose values may be read."""
    return is_plain_call(tensors) and all(t.dtype in _DTYPES and t.numel() for t in tensors)


class Tridiagonal(NamedTuple):
    """T and Q of matrices [..., S, S], as ``csrc/tridiagonal.h`` describes them."""

    reflectors: Tensor
    tau: Tensor
    diagonal: Tensor
    beside: Tensor
    bounds: Tensor
    """The smallest and the largest eigenvalue [..., 2]."""

    def shifted(self, amount: Tensor) -> Tridiagonal:
        """Return the form of A + amount I, for amount [...]."""
        return self._replace(diagonal=self.diagonal + amount[..., None], bounds=self.bounds + amount[..., None])

    @property
    def batch(self) -> torch.Size:
        return self.diagonal.shape[:-1]

    def _check_batch(self, *batches: torch.Size) -> None:
        """Raise if the core would read or write other problems than these: it gets one number for all tensors."""
        if any(batch != self.batch for batch in batches):
            raise ValueError(f"expected the batch {tuple(self.batch)} of the form, got {[*map(tuple, batches)]}")

    def _rotated(self, x: Tensor, transposed: bool) -> Tensor:
        """Change x [..., S, M] in place to Q^T x or Q x; it is dense."""
        n, m = x.shape[-2:]
        self._check_batch(x.shape[:-2])
        threads, batch = torch.get_num_threads(), self.batch.numel()
        work = take_workspace(core.tridiagonal_workspace(n, m, threads), x)
        tensors = to_capsule(self.reflectors), to_capsule(self.tau), to_capsule(x)
        core.tridiagonal_rotate(*tensors, transposed, to_capsule(work), batch, n, m, threads)
        return_workspace(work)
        return x

    def rotate(self, y: Tensor) -> Tensor:
        """Return Q^T y for y [..., S, M]."""
        return self._rotated(_copy(y), True)

    def solve_rotated(self, y: Tensor, shifts: Tensor) -> Tensor:
        """Return (T + shifts[..., r, c] I)^-1 y[..., :, r, c].

        Args:
            y: [..., S, R or 1, C].
            shifts: [..., R, C or 1].
        """
        n, many, c = y.shape[-3:]
        r, each = shifts.shape[-2:]
        self._check_batch(y.shape[:-3], shifts.shape[:-2])
        threads, batch = torch.get_num_threads(), self.batch.numel()
        x = y.new_empty(*self.batch, n, r, c)
        work = take_workspace(core.tridiagonal_workspace(n, 0, threads), x)
        core.tridiagonal_solve(
            to_capsule(self.diagonal),
            to_capsule(self.beside),
            to_capsule(shifts.detach().contiguous()),
            to_capsule(y.detach().contiguous()),
            to_capsule(x),
            to_capsule(work),
            batch,
            n,
            r,
            c,
            many < r,
            each < c,
            threads,
        )
        return_workspace(work)
        return x

    def solve(self, y: Tensor, shifts: Tensor) -> Tensor:
        """Return (A + shift I)^-1 Y [..., R, S, C] for y [..., R or 1, S, C] and shifts [..., R, C or 1]."""
        order = y.movedim(-3, -2)
        rotated = self.rotate(order.flatten(-2)).unflatten(-1, order.shape[-2:])
        x = self.solve_rotated(rotated, shifts)
        return self._rotated(x.flatten(-2), False).unflatten(-1, x.shape[-2:]).movedim(-2, -3)

    def predict(self, k_qs: Tensor, y: Tensor, shifts: Tensor, product: Any) -> Tensor:
        """Return K_qs (A + shift I)^-1 Y [..., R, Q, C] for y [..., S, C] and shifts [..., R, C or 1].

        ``product(a, b)`` computes a b^T. If the targets share their shifts, they shift the smaller side.
        """
        right = self.rotate(y)  # [..., S, C]
        r, q, c = shifts.shape[-2], k_qs.shape[-2], right.shape[-1]
        if shifts.shape[-1] == 1 and q <= c:
            x = self.solve_rotated(self.rotate(k_qs.mT).unsqueeze(-2), shifts)
            # The larger factor on the right is read along its rows.
            every: Tensor = product(right.mT, x.flatten(-2).mT)
            return every.unflatten(-1, (r, q)).movedim(-3, -1)
        x = self.solve_rotated(right.unsqueeze(-2), shifts).flatten(-2)
        # Rotate the smaller side.
        sides = (k_qs, self._rotated(x, False).mT) if r * c < q else (self.rotate(k_qs.mT).mT, x.mT)
        every = product(*sides)
        return every.unflatten(-1, (r, c)).movedim(-2, -3)


def _copy(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype).copy_(x.detach())


def tridiagonal(a: Tensor) -> Tridiagonal:
    """Return the tridiagonal form of the lower triangle of a [..., S, S], a plain tensor on the CPU."""
    batch, n = a.shape[:-2], a.shape[-1]
    threads, new = torch.get_num_threads(), a.new_empty
    found = Tridiagonal(new(a.shape), new(*batch, n), new(*batch, n), new(*batch, n), new(*batch, 2))
    work = take_workspace(core.tridiagonal_workspace(n, 0, threads), a)
    reflectors, tau, diagonal, beside, bounds = (to_capsule(t) for t in found)
    sizes = math.prod(batch), n, threads
    core.tridiagonal(matrices(a), reflectors, tau, diagonal, beside, bounds, to_capsule(work), *sizes)
    return_workspace(work)
    return found
