"""Which batches of small problems the CPU solves one problem per lane of a vector (``csrc/cpu/krr_lanes.cpp``).

A rule of the shapes that both passes ask. It does not depend on which gradients are wanted, so the two agree.
"""

from __future__ import annotations

from .problem import Problem, is_primal

# As krr_lanes.cpp: support points, and vectors of the support features and of W that stay in the second-level cache.
MOST_SUPPORT = 64
MOST_VECTORS = 4096
LEAST_BATCH = 2


def by_lanes(p: Problem, batch: int) -> bool:
    """True if this many problems are solved by lanes."""
    if not p.linear or is_primal(p) or batch < LEAST_BATCH:
        return False
    return 1 <= p.s <= MOST_SUPPORT and p.s * p.d <= MOST_VECTORS and p.d * p.c <= MOST_VECTORS and p.c <= MOST_VECTORS
