"""The order of the products to run: a pure function of the shapes, never of a timing.

The same result has several orders of work (described in ``csrc/krr.h``), and the cheapest depends on the shape alone.
The primal (D, plus one with a bias, below S) never costs more than the dual and is far better conditioned at small
ridges, so it is a rule. Between the dual orders, a small model of multiply-adds and passes over memory decides,
separately for forward and backward. On a GPU the model is in seconds, from launches, bytes and FLOPs (``gpu.py``). It
also decides whether the blocks that factor K_ss form it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from . import constants, one_pass
from . import gpu as gpu_model
from . import problem as sizes
from .gpu import PLANNED_SOURCE, Gpu, planned_is_faster
from .lanes import by_lanes as _by_lanes
from .problem import STAND_IN, Problem, is_primal

__all__ = [
    "BACKWARD",
    "CODES",
    "FORWARD",
    "PLANNED_SOURCE",
    "STAND_IN",
    "Gpu",
    "Plan",
    "Problem",
    "backward_costs",
    "by_lanes",
    "choose",
    "constants",
    "force",
    "forward_costs",
    "is_forced",
    "is_primal",
    "one_pass",
    "planned_is_faster",
]

FORWARD = ("dense", "low_rank", "primal")
BACKWARD = ("dense", "low_rank", "mixed", "primal")
CODES = {"dense": 0, "low_rank": 1, "mixed": 2, "primal": 3}

# One multiply-add is the unit. A product with an inner or outer dimension as thin as a register tile runs slower
# by THIN / dimension; every element moved costs BYTES multiply-adds. Measured by benchmarks/bench_plan.py.
THIN = 6.0
MOVE = 6.0


@dataclass(frozen=True)
class Plan:
    """A chosen plan: an order for each pass, the queries per chunk, and the modelled costs of every legal order."""

    forward: str
    backward: str
    chunk: int
    costs: dict[str, dict[str, float]] = field(default_factory=dict, compare=False)
    fused_gram: bool = False  # GPU: K_ss is formed by the blocks that factor it
    device: str = field(default="", compare=False)  # the GPU whose seconds the costs are; "": multiply-adds

    def __str__(self) -> str:
        fused = ", K_ss fused with its factorisation" if self.fused_gram else ""
        once = "; the loss in one pass over the queries" if "loss, both passes" in self.costs else ""
        lines = [f"forward {self.forward}, backward {self.backward}, {self.chunk} queries at a time{fused}{once}"]
        unit, scale = (f"microseconds on {self.device}", 1e6) if self.device else ("multiply-adds", 1.0)
        for which, table in self.costs.items():
            ranked = ", ".join(f"{name} {cost * scale:.3g}" for name, cost in sorted(table.items(), key=lambda i: i[1]))
            lines.append(f"  {which} (modelled {unit}): {ranked}")
        return "\n".join(lines)


def _product(m: float, n: float, k: float) -> float:
    """Return the modelled cost of c[m, n] = a[m, k] b[k, n]."""
    if not (m and n and k):
        return 0.0
    return m * n * k * (1 + THIN / min(m, n, k)) + MOVE * (m * k + k * n + 2 * m * n)


def _gram(p: Problem) -> float:
    return _product(p.s, p.s, p.d) / 2 + p.s**3 / 6 + p.s**2 * p.c


def forward_costs(p: Problem) -> dict[str, float]:
    if is_primal(p):
        n = p.d + p.bordered
        work = _product(n, n, p.s) / 2 + n**3 / 6 + n * n * p.c + _product(n, p.c, p.s) + _product(p.q, p.c, n)
        return {"primal": work}
    chunk_form = 1.0 if p.linear else 2.5  # a squared distance takes two instructions, a product one
    costs = {"dense": _gram(p) + chunk_form * _product(p.q, p.s, p.d) + _product(p.q, p.c, p.s)}
    if p.linear:
        costs["low_rank"] = _gram(p) + _product(p.c, p.d, p.s) + _product(p.q, p.c, p.d)
    return costs


def backward_costs(p: Problem, kept: bool) -> dict[str, float]:
    s, q, d, c = p.s, p.q, p.d, p.c
    if is_primal(p):
        n = d + p.bordered
        work = _product(n, c, q) + _product(s, c, n) + n * n * c
        if p.needs_x_s:
            work += _product(s, c, n) + _product(s, d, 2 * c)
        return {"primal": work + (_product(q, d, c) if p.needs_x_q else 0)}
    solve = float(s * s * c)
    to_queries = _product(c, d, s) + _product(q, d, c) if p.needs_x_q else 0.0
    form = 1.0 if p.linear else 2.5
    k_qs = 0.0 if kept else form * _product(q, s, d)
    two_k = _product(s, s, 2 * c) / 2 + _product(s, d, s)
    dense = solve + k_qs + _product(s, c, q)
    if p.needs_x_s or not p.linear:
        dense += two_k + _product(q, s, c) + _product(s, d, q)
    if not p.linear:
        return {"dense": dense + (0.0 if kept else k_qs) + (_product(q, d, s) if p.needs_x_q else 0.0)}
    abar = _product(s, c, q) if kept else _product(s, c, d)
    low_rank = solve + _product(c, d, q) + abar
    mixed = low_rank
    if p.needs_x_s:
        low_rank += _product(2 * c, d, s) + _product(s, d, 2 * c)
        mixed += two_k + _product(s, d, c)
    # The low-rank order already has W if X_s needs a gradient.
    shared = _product(q, d, c) if p.needs_x_q and p.needs_x_s else to_queries
    return {"dense": dense + to_queries, "low_rank": low_rank + shared, "mixed": mixed + to_queries}


_forced: dict[str, str] = {}


@contextlib.contextmanager
def force(*, forward: str | None = None, backward: str | None = None) -> Iterator[None]:
    """Run these orders if they are legal for the shape, whatever the model says: for tests and benchmarks."""
    for name, value, allowed in (("forward", forward, FORWARD), ("backward", backward, BACKWARD)):
        if value is not None and value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    before = dict(_forced)
    _forced.update({k: v for k, v in (("forward", forward), ("backward", backward)) if v is not None})
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def is_forced() -> bool:
    """Return True inside a :func:`force`."""
    return bool(_forced)


def by_lanes(p: Problem, batch: int) -> bool:
    """True if the CPU solves this many problems one per lane of a vector, in the low-rank order; see ``lanes.py``."""
    return not _forced and _by_lanes(p, batch)


def choose(p: Problem, gpu: Gpu | None = None) -> Plan:
    """Return the plan for one problem on the CPU, or for a batch on a GPU; cached by shape."""
    plan = _choose(p, gpu)
    if not _forced:
        return plan
    picked = {}
    for which in ("forward", "backward"):
        forced = _forced.get(which)
        legal = plan.costs[which]
        if forced is not None and forced not in legal:
            raise ValueError(f"plan {forced!r} is not legal for {p} in the {which}: legal are {', '.join(legal)}")
        picked[which] = forced or getattr(plan, which)
    return replace(plan, forward=picked["forward"], backward=picked["backward"])


@lru_cache(maxsize=4096)
def _choose(p: Problem, gpu: Gpu | None) -> Plan:
    kept = p.kept_queries > 0
    chunk = max(1, min(p.q, max(64, sizes.K_QS_BYTES // max(1, p.s * p.itemsize))))
    forward = forward_costs(p) if gpu is None else gpu_model.forward_costs(p, gpu, chunk)
    first = "dense" if kept and not is_primal(p) else min(forward, key=lambda k: forward[k])
    kept = kept and first == "dense"
    backward = backward_costs(p, kept) if gpu is None else gpu_model.backward_costs(p, gpu, kept, chunk)
    second = min(backward, key=lambda k: backward[k])
    costs = {"forward": forward, "backward": backward}
    if gpu is None:
        return Plan(first, second, chunk, costs)
    if is_primal(p):
        return Plan(first, second, chunk, costs, device=gpu.name)
    ways = gpu_model.gram_costs(p, gpu)
    costs["K_ss"] = ways
    if one_pass.blocks(p):
        costs["loss, both passes"] = {"one pass": one_pass.cost(p, gpu), "products": forward[first] + backward[second]}
    return Plan(first, second, chunk, costs, min(ways, key=lambda k: ways[k]) == "fused", gpu.name)
