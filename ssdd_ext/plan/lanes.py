"""Which batches of small problems the CPU solves one problem per lane of a vector (``csrc/cpu/krr_lanes.cpp``).

A rule of the shapes that both passes ask. It does not depend on which gradients are wanted, so the two agree.
Measured by ``benchmarks/bench_batched.py``: a problem of few support points and many features is read from memory once
by the ordinary order, and lanes then only move it.
"""

from __future__ import annotations

from .problem import Problem, is_primal

# As krr_lanes.cpp: support points, and vectors of the support features and of W that stay in the second-level cache.
MOST_SUPPORT = 64
MOST_VECTORS = 4096
MOST_FEATURES = 192  # one register sums over all features
LEAST_BATCH = 4
# With fewer support points than FEW, up to so many features.
FEW, FEATURES_OF_FEW = 8, 64


def by_lanes(p: Problem, batch: int) -> bool:
    """True if this many problems are solved by lanes."""
    if not p.linear or is_primal(p) or batch < LEAST_BATCH:
        return False
    features = MOST_FEATURES if p.s >= FEW else FEATURES_OF_FEW
    fits = p.s * p.d <= MOST_VECTORS and p.d * p.c <= MOST_VECTORS
    return 1 <= p.s <= MOST_SUPPORT and 1 <= p.d <= features and p.c >= 1 and fits
