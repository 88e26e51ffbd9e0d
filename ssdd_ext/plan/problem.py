"""What a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Sizes of one problem: S support points, Q queries, D features, C targets; what needs a gradient. ``batch`` counts
    on a GPU only, where the problems of a batch run beside each other."""

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
    feature_size: int = 0  # bytes of one feature where they are narrower than the rest, or 0

    @property
    def feature_bytes(self) -> int:
        return self.feature_size or self.itemsize


def is_primal(p: Problem) -> bool:
    return p.linear and p.d + p.bordered < p.s
