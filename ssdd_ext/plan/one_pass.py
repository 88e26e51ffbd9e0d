"""The loss of a linear kernel on a GPU by kernels that read the queries once (csrc/cuda/one_pass.cuh).

Whether they run is arithmetic on the sizes alone, which also works with symbolic sizes, since what the forward keeps
depends on it. ``tests/ext/test_one_pass.py`` compares the rule with the model of :func:`cost`: it holds only where the
model expects at least 1.2 times the speed of the products. The kernels have run on no GPU.
"""

from __future__ import annotations

import math
from typing import Any

from .gpu import CHIP, FILL, PIVOT_FEW, SOLVE_STEP, Cost, Gpu
from .problem import Problem, is_primal

FACTORS, MOST_SUPPORT = 32, 128  # kOnePassFactors, kOnePassSupport
ROWS, GROUP, PROCESSORS = 8, 32, 132  # of the smallest tile of queries; columns of a group; kProcessors
# Where they are chosen: up to so many targets, features, and multiply-adds of all problems in both passes, which run on
# the ordinary units (0: never); with more than 16 support points, from so many features on, and above FACTORS also
# from so many problems on.
MOST_TARGETS, MOST_FEATURES, MOST_WORK = 16, 4096, 1 << 30
LEAST_FEATURES, LEAST_BATCH = 256, 64
TINY = 1 << 22  # multiply-adds up to which there may be fewer than four features per support point


def _groups(n: Any) -> Any:
    return (n + GROUP - 1) // GROUP * GROUP


def part_elements(s: Any, d: Any, c: Any) -> Any:
    """Return the numbers that one block leaves for the backward: one_pass_part of csrc/krr.h."""
    return c * _groups(d) + _groups(s * c) + _groups(c)


def work(p: Problem) -> Any:
    """Return the multiply-adds of the products with features, in both passes."""
    few = p.s <= FACTORS
    return p.batch * p.d * (p.q * ((p.s if few else p.c) + p.c) + p.s * ((0 if few else 16 * p.c) + 4 * p.c))


def blocks(p: Problem) -> Any:
    """Return the blocks of queries per problem; 0 if the products of an order run."""
    if not (p.linear and p.itemsize == 4) or is_primal(p):
        return 0
    if p.s > MOST_SUPPORT or p.c > MOST_TARGETS or p.d > MOST_FEATURES or p.q < 1 or p.batch < 1 or p.c < 1:
        return 0
    if p.s > 16 and p.d < LEAST_FEATURES:
        return 0
    if p.s > FACTORS and (p.batch < LEAST_BATCH or p.d < 2 * LEAST_FEATURES):
        return 0
    if work(p) > MOST_WORK or (p.d < 4 * p.s and work(p) > TINY):
        return 0
    tiles, at_most = (p.q + ROWS - 1) // ROWS, CHIP // p.batch
    if at_most < 1:
        return 1
    return at_most if tiles > at_most else tiles


def _tile_rows(p: Problem, parts: int) -> int:
    """Return the queries of a tile, without regard to shared memory."""
    return next((rows for rows in (32, 16, ROWS) if math.ceil(p.q / rows) >= parts), ROWS)


def cost(p: Problem, gpu: Gpu) -> float:
    """Return the seconds of both passes. Cycles are counted: a warp takes 12 loads of shared memory per 128
    multiply-adds of a product along features, and 5 per 16 of an outer product."""
    parts = int(blocks(p)) or 1
    total = Cost(gpu, p.batch, p.itemsize)
    total.passes(16)  # the scalars
    width, targets, rows = _groups(p.d), -(-p.c // 4), _tile_rows(p, parts)
    tiles = math.ceil(math.ceil(p.q / rows) / parts)  # per block
    along, outer = -(-width // 128) * 48, width / 128 * targets * 5

    def dots(units: float) -> float:
        return max(units * along, math.ceil(units / 8) * along * 4) + units * 130

    if p.s <= FACTORS:
        columns = -(-p.s // 4)
        square = sum(min(2 * i + 2, columns) for i in range(-(-p.s // 8)))
        block = dots(square) + PIVOT_FEW * p.s + _solve(p) + tiles * (dots(rows / 8 * columns) + rows * outer + 2000)
        read = p.s * p.d * tiles
    else:
        total.gram(p, p.s, p.s, triangle=True)
        total.factor(p.s, p.c)
        supports = math.ceil(p.s / rows)
        block = 2 * p.s * outer + supports * (dots(rows / 8 * targets) + 4000)
        block += tiles * (dots(rows / 8 * targets) + rows * outer + 3000)
        read = 2 * p.s * p.d
    left = part_elements(p.s, p.d, p.c)
    moved = p.batch * (p.q * p.d * p.feature_bytes + 4 * (2 * p.q * p.c + parts * (left + read / 4)))
    room = 4 * (rows * width + 2 * targets * 4 * width + p.s * 512)
    _blocks(total, p.batch * parts, block, moved, room)
    # The backward: sums of the parts, the solve, W and N, and rows of the gradients.
    chip = CHIP if p.s <= FACTORS else PROCESSORS
    strip = min(256, math.ceil(width / GROUP / max(1, min(width // GROUP, chip // p.batch))) * GROUP)
    strips = math.ceil(width / strip)
    units = strip / GROUP * p.c + (left - p.c * width) / GROUP
    block = math.ceil(units / 8) * math.ceil(parts / 16) * 700 + _solve(p)
    block += 2 * p.s * strip / 128 * targets * 5 + (2 * p.s + p.needs_x_q * p.q) / 4 * strip / 128 * targets * 20
    moved = p.batch * 4 * (parts * left + 2 * p.s * p.d + p.needs_x_q * p.q * p.d + strips * p.s * p.s)
    _blocks(total, p.batch * strips, block, moved, 4 * (p.s * p.s + p.s * strip))
    return total.seconds


def _solve(p: Problem) -> float:
    return 2 * p.s * SOLVE_STEP * math.ceil(p.c / 16)


def _blocks(total: Cost, count: int, cycles: float, moved: float, room: int) -> None:
    """Add a launch of blocks of 256 threads. Those of one multiprocessor share its units, which one half fills."""
    gpu = total.gpu
    together = max(1, min(2, gpu.shared // max(1, room)))
    waves = max(1.0, count / (gpu.multiprocessors * together))
    busy = (FILL + waves * cycles * (1.5 if together == 2 and waves > 0.5 else 1.0)) / gpu.clock
    total.launch(max(busy, moved / gpu.bandwidth + FILL / gpu.clock))
