"""The sizes that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Bytes that K_qs may take. Beyond, queries are processed in chunks, and the backward forms K_qs again.
K_QS_BYTES = 1 << 28
# Rows of the stand-in for a K_qs that is not kept; they are never read. PyTorch specialises a compiled graph for
# tensors of no or one element, so a saved tensor that is sometimes empty would cost a second graph.
STAND_IN = 2


@dataclass(frozen=True)
class Problem:
    """Sizes of one problem: S support points, Q queries, D features, C targets; and which inputs need a gradient.

    ``batch`` matters on a GPU only, where the problems of a batch run side by side. The order of the factor and what
    the forward keeps are computed by arithmetic that works with symbolic sizes. So what an op saves depends on the
    shapes alone, and one compiled graph serves all of them.
    """

    s: int
    q: int
    d: int
    c: int
    linear: bool = True
    bordered: bool = False
    itemsize: int = 4
    needs_x_s: bool = True
    needs_x_q: bool = False
    batch: int = 1
    feature_size: int = 0  # bytes of one feature if they are narrower than the rest, or 0
    arguments: bool = False  # the backward needs those of the kernel function beside its values
    angles: int = 0  # computed in float64 per element of K, or 0

    @property
    def feature_bytes(self) -> int:
        return self.feature_size or self.itemsize

    @property
    def order(self) -> int:
        """Order of the factor: S, or D (+1) in the primal if that is smaller."""
        return _min(self.s, self.d + self.bordered) if self.linear else self.s

    @property
    def kept_queries(self) -> int:
        """Rows of K_qs that the forward keeps for the backward: Q, or 0 (also if Q is no more than STAND_IN)."""
        s, q, d, c = self.s, self.q, self.d, self.c
        kept = 2 * q + s if self.arguments else q
        fits = _min(1, K_QS_BYTES // _max(1, kept * s * self.itemsize)) * _min(1, q // (STAND_IN + 1))
        if not self.linear:
            return q * fits
        # Multiply-adds of both passes with K_qs at hand, and without it: W, M and X_s M^T in its place.
        with_it = q * s * (d + 2 * c) + s * s * (c + d) + _min(q * s * (d + c), c * d * (q + s))
        without = c * d * (s + q) + c * d * (q + s) + _min(s * s * (c + d) + s * d * c, 4 * c * d * s)
        return q * fits * _min(1, without // _max(1, with_it)) * _min(1, (d + self.bordered) // s)

    @property
    def kept_rows(self) -> int:
        """Rows of S numbers that the forward keeps: K_qs and, if needed, the arguments of K_qs and K_ss."""
        if not self.arguments:
            return self.kept_queries
        return (2 * self.q + self.s) * _min(1, self.kept_queries)

    @property
    def saved_rows(self) -> int:
        """Rows of the tensor that is saved for K_qs between the passes."""
        return _max(STAND_IN, self.kept_rows)


def is_primal(p: Problem) -> bool:
    """Return True if the factor is that of Phi^T Phi + lambda I, of order D (+1) below S."""
    return p.linear and p.d + p.bordered < p.s


def _min(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    import torch

    return torch.sym_min(a, b)


def _max(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    import torch

    return torch.sym_max(a, b)
