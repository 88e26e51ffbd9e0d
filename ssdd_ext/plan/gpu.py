"""The cost of the orders of the products on a GPU, in seconds.

A cost consists of launches, bytes over the memory's rate, FLOPs over the units' rate, and chains of pivots, which run
one after the other. It is pure arithmetic on the shapes and the device's constants (an H100's, scaled by the properties
that CUDA reports): nothing is timed, and nothing synchronises. The tiles, splits and limits are those of ``csrc/cuda``;
the rates were measured on an H100 (``constants.py``). Only the order of the costs matters. On an H100 they are also
within a factor of 1.6 of the times of ``benchmarks/results/gpu-h100``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from . import constants
from .problem import Problem, is_primal

TILE, LARGE_TILE, DEPTH = 64, 128, 16  # of a product (product.cuh)
# Blocks that fill the chip, and the least k of a split, with each tile; splits at most; a join in steps of k.
CHIP, SHORTEST, LARGE_CHIP, LARGE_SHORTEST, MOST_SPLITS, JOIN_STEPS = 264, 128, 132, 256, 16, 18  # product_plain.cu
LARGE_ALLOWANCE = 1.2  # the large tile may take so much longer by that count
TENSOR_FROM = 48  # k from which float products run on the tensor cores
# Blocks of a product that run on one multiprocessor at a time, by their registers (benchmarks/results/sass.md).
TENSOR_BLOCKS, LARGE_BLOCKS, PLAIN_BLOCKS, DOUBLE_BLOCKS = 3, 1, 2, 1
WARP_LIMIT, STRIP, SQUARE, WARPS = 32, 16, 32, 8  # factor.cuh, triangle.cuh, factor_fused.cu
PASS, PASSES_UP_TO = 16, 32  # columns that a block solves behind its factor: per pass, and at most
COLUMNS, NARROW = 64, 8  # of x in a tile; in the narrowest block of a solve

# Cycles that follow from the times of whole kernels in benchmarks/results/gpu-h100, less what stands in constants.py.
# A block of a product: its first loads from memory, three stages deep, its sums through shared memory and its stores.
# Blocks that follow one another on a multiprocessor do not hide it.
FILL = 8000.0
JOIN = 350.0  # of one split's sums of a tile, which the block that is done last reads (join.cuh)
SUBSTITUTE = 3000.0  # of 16 rows in one block, both ways: two barriers, 16 dependent columns, an update
# Counted for one_pass.cu, not measured: a pivot of few_kernel with its barrier; one step of a solve by a warp.
PIVOT_FEW, SOLVE_STEP = 250.0, 70.0
STAGE = 900.0  # the least that 16 features take in the fused kernel: a trip to memory, which no stage before it hides


# Sizes at which planned PyTorch (cuBLAS and cuSOLVER under it) was measured to take less time on a GPU than the native
# kernels. Each row is (least S, least Q, least D, least C, most problems in a batch): linear kernels in float32 that
# are not primal and at least as large as one row run planned PyTorch under backend="auto". The table is empty, which
# turns that off: the native kernels are faster in every row of PLANNED_SOURCE (graph replay in microseconds, native
# and planned PyTorch: 48 and 117 at S=2, 239 and 351 at S=100 D=4096 C=512, 2303 and 2928 at S=1000 D=8192 C=512).
PLANNED_SOURCE = "benchmarks/results/gpu-h100/rows.jsonl"
PLANNED_IS_FASTER: tuple[tuple[int, int, int, int, int], ...] = ()


# True: large float32 products take three half-precision instructions in place of three of TF32, at the same accuracy
# (csrc/cuda/product_halves.cu). Counted, it is faster; it stays off until a run on a GPU shows that it is. `make gpu`
# measures both ("halves" in constants.py).
HALVES = False

# True: a float32 factorisation of at most 512 rows that is too large for one block takes one cluster of blocks per
# problem, on GPUs that have clusters (sm_90 and later) and for at most 16 problems (csrc/cuda/factor_cluster.cu).
# Counted, 512 rows take 55 us where the tiled kernel was measured to take 137. To be turned on, it has to be faster in
# every row "cluster beside tiles" (constants.py) of a committed run of `make gpu` on such a GPU, with errors at most
# twice those of the tiled kernel.
CLUSTER = False

# True: |x - z|^2 of the forward is formed by a product of the points about their mean, and again by differences where
# that would lose digits (csrc/cuda/distances.cu). Counted for S=1000 Q=1024 D=8192 on an H100: differences issue 2.5
# instructions per term, which takes 640 us; the product takes 320 us at its measured rate, and the passes around it 90.
# Points in few clusters far apart take both. It stays off until "distances by products" (constants.py) of a committed
# run of `make gpu` shows that it is faster for spread points, with errors within the bound of docs/design.md.
PRODUCTS = False
# Terms (batch S Q D) from which it is used: below, the passes around the product take longer than it saves.
PRODUCTS_FROM = 1 << 31

# True: kernels are launched as programmatic dependents on GPUs that have it (sm_90 and later): the blocks of a kernel
# are put on the chip while the kernel before it still runs, and wait there for its end (csrc/cuda/simt.cuh). Results
# are the same to the last bit. It can save a part of the 1.4 us from one kernel of a graph to the next (LAUNCH in
# constants.py). It can also cost time: early blocks take multiprocessors that have room, which need not be those that
# would be free first. To be turned on, it has to be no slower in every row "dependent launch" of a committed run of
# `make gpu`.
DEPENDENT_LAUNCH = False

# Kernels of an angle are computed in float64. Per angle, the elementwise operations of planned PyTorch move about 1000
# bytes per element of K in both passes (counted), which the native kernels do not. But a product of the core takes five
# times as long as one of cuBLAS (9.2 against 50 TF/s, measured on an H100). Up to so many features per angle the core
# is expected to be faster.
FEATURES_PER_ANGLE = 750


def by_products(batch: int, s: int, q: int, d: int) -> bool:
    """Return True if squared distances of such sizes are formed by products."""
    return PRODUCTS and batch * s * q * d >= PRODUCTS_FROM


def planned_is_faster(p: Problem) -> str:
    """Say why planned PyTorch is faster than the native kernels at such sizes on a GPU; "" if it is not."""
    if p.angles and p.d > FEATURES_PER_ANGLE * p.angles:
        return f"its float64 products are faster on a GPU for more than {FEATURES_PER_ANGLE * p.angles} features"
    if _is_measured_faster(p):
        return f"measured to be faster on a GPU: {PLANNED_SOURCE}"
    return ""


def _is_measured_faster(p: Problem) -> bool:
    if not p.linear or p.itemsize != 4 or p.feature_bytes != 4 or is_primal(p):
        return False
    return any(
        p.s >= s and p.q >= q and p.d >= d and p.c >= c and p.batch <= batch for s, q, d, c, batch in PLANNED_IS_FASTER
    )


@dataclass(frozen=True)
class Gpu:
    """The constants of a device; the defaults are an H100 SXM's."""

    name: str = "H100"
    multiprocessors: int = constants.MULTIPROCESSORS
    clock: float = constants.CLOCK
    bandwidth: float = constants.BANDWIDTH  # bytes per second
    shared: int = constants.SHARED  # bytes of shared memory per block
    fp32: float = constants.SHEET_FP32  # FLOPs per second, a multiply-add counted as two
    fp64: float = constants.FP64
    tensor: float = constants.TENSOR  # fp32 products as three TF32 products
    one_pass: float = constants.ONE_PASS  # products of two 16-bit inputs
    launch: float = constants.LAUNCH  # from one kernel of a graph to the next

    @staticmethod
    def of(properties: Any) -> Gpu:
        """Read torch.cuda.get_device_properties(...), or any object with its names. Missing properties are scaled
        from an H100's."""
        base = Gpu()
        count = getattr(properties, "multi_processor_count", base.multiprocessors)
        clock = getattr(properties, "clock_rate", 0) * 1e3 or base.clock
        speed = count * clock / (base.multiprocessors * base.clock)
        memory, bus = getattr(properties, "memory_clock_rate", 0) * 1e3, getattr(properties, "memory_bus_width", 0)
        reached = constants.BANDWIDTH / constants.SHEET_BANDWIDTH
        major = getattr(properties, "major", 9)
        # Data sheets: chips for games and workstations have 1/64 of fp32's rate in fp64 and a quarter of the TF32.
        small = major < 8 or (major, getattr(properties, "minor", 0)) in ((8, 6), (8, 9), (12, 0))
        return replace(
            base,
            name=getattr(properties, "name", base.name),
            multiprocessors=count,
            clock=clock,
            # Two transfers per cycle, and of that rate the share that a copy reaches.
            bandwidth=memory * bus / 4 * reached if memory and bus else base.bandwidth * speed,
            shared=getattr(properties, "shared_memory_per_block_optin", base.shared),
            fp32=base.fp32 * speed,
            fp64=base.fp64 * speed / (32 if small else 1),
            tensor=base.tensor * speed / (4 if small else 1),
            one_pass=base.one_pass * speed / (4 if small else 1),
        )


def shared_pitch(n: int, itemsize: int) -> int:
    """Return the row pitch of triangle.cuh: an odd multiple of 16 bytes."""
    wide = 16 // itemsize
    return (math.ceil(n / wide) | 1) * wide


def block_bytes(n: int, itemsize: int, fused: bool) -> int:
    """Return the shared memory of a one-block factorisation. fused: two stages of features share the work area."""
    rows, strips = math.ceil(n / SQUARE) * SQUARE, math.ceil(n / STRIP) * STRIP
    working = STRIP * SQUARE + strips * PASS
    if fused:
        working = max(working, 2 * rows * (STRIP + 16 // itemsize))
    return itemsize * (n * shared_pitch(n, itemsize) + strips + n + working) + 64


def fits_block(gpu: Gpu, n: int, itemsize: int, fused: bool = False) -> bool:
    return n <= 256 and block_bytes(n, itemsize, fused) <= gpu.shared - 256


@dataclass
class Cost:
    """Seconds of a sequence of launches on one device."""

    gpu: Gpu
    batch: int
    itemsize: int
    seconds: float = 0.0
    launches: int = 0

    def launch(self, busy: float, count: int = 1) -> None:
        self.launches += count
        self.seconds += busy + count * self.gpu.launch

    def product(
        self, m: int, n: int, k: int, *, triangle: bool = False, distance: bool = False, sizes: tuple[int, int] = (0, 0)
    ) -> None:
        """Add c[m, n] = a[m, k] b[k, n] for every problem. sizes: bytes per element of a and b (0: like the rest)."""
        if not (m and n and self.batch):
            return
        gpu, (a, b) = self.gpu, (size or self.itemsize for size in sizes)
        on_tensor = self.itemsize == 4 and k >= TENSOR_FROM and not distance
        halves = on_tensor and a < 4 and b < 4
        large = on_tensor and (halves or (a == 4 and b == 4)) and self._takes_large(m, n, k, triangle)
        tile = LARGE_TILE if large else TILE
        tiles, splits = self._cover(tile, m, n, k, triangle)
        if on_tensor:
            rate, together = gpu.one_pass if halves else gpu.tensor, LARGE_BLOCKS if large else TENSOR_BLOCKS
        elif self.itemsize == 4:
            rate, together = gpu.fp32, PLAIN_BLOCKS
        else:
            rate, together = gpu.fp64, DOUBLE_BLOCKS
        # A block has its share of what its multiprocessor can do; a block's k is rounded up to whole steps.
        steps = math.ceil(k / splits / DEPTH) * DEPTH
        one = (3 if distance else 2) * tile * tile * steps / (rate / gpu.multiprocessors / together)
        waves = max(1.0, tiles * splits / (gpu.multiprocessors * together))
        waves = float(math.ceil(waves)) if together == 1 else waves
        read = a * m * k + (0 if triangle else b * n * k)
        moved = self.batch * (read + self.itemsize * m * n * (2 * splits + 1 if splits > 1 else 1))
        join = JOIN * splits * (min(m, tile) * min(n, tile) / TILE**2) if splits > 1 else 0.0
        self.launch(max(waves * (one + FILL / gpu.clock), moved / gpu.bandwidth) + join / gpu.clock)

    def gram(self, p: Problem, m: int, n: int, *, triangle: bool = False) -> None:
        """Add the Gram matrix [m, n] of the forward, or its arguments."""
        f, apart = p.feature_bytes, not p.linear
        if p.linear or not by_products(p.batch, p.s, max(p.s, p.q), p.d):
            return self.product(m, n, p.d, triangle=triangle, distance=apart, sizes=(f, f))
        self.passes((m if triangle else m + n) * p.d, 2)
        self.product(m, n, p.d, triangle=triangle)
        self.passes(m * n)

    def _cover(self, tile: int, m: int, n: int, k: int, triangle: bool) -> tuple[int, int]:
        """Return the tiles of all problems, and the splits of k."""
        rows, columns = math.ceil(m / tile), math.ceil(n / tile)
        tiles = self.batch * (rows * (rows + 1) // 2 if triangle else rows * columns)
        chip, shortest = (LARGE_CHIP, LARGE_SHORTEST) if tile == LARGE_TILE else (CHIP, SHORTEST)
        return tiles, max(1, min(chip // tiles, k // shortest, MOST_SPLITS))

    def _takes_large(self, m: int, n: int, k: int, triangle: bool) -> bool:
        """Return True for the large tile, as best_cover of product_plain.cu does."""

        def time(tile: int) -> int:
            tiles, splits = self._cover(tile, m, n, k, triangle)
            turns = math.ceil(tiles * splits / LARGE_CHIP)
            return tile**2 * (turns * math.ceil(k / splits) + (JOIN_STEPS * splits if splits > 1 else 0))

        return time(LARGE_TILE) <= LARGE_ALLOWANCE * time(TILE)

    def passes(self, elements: float, count: int = 1) -> None:
        """Add small kernels between products, which read and write ``elements`` elements in total."""
        moved = 2 * self.batch * elements * self.itemsize
        self.launch(moved / self.gpu.bandwidth + count * FILL / 2 / self.gpu.clock, count)

    def _blocks(self, count: float, chain: float, work: float, room: int) -> None:
        """Add one block per problem: cycles of its chain, which other blocks hide, and of its work, for which they
        share the units."""
        together = max(1, min(2, self.gpu.shared // max(1, room)))
        waves = max(1.0, count / (self.gpu.multiprocessors * together))
        self.launch((FILL / 2 + waves * max(chain + work, together * work)) / self.gpu.clock)

    def _units(self, multiply_adds: float) -> float:
        # Cycles of one multiprocessor: 128 lanes of fp32, two thirds of them busy; half as many lanes in fp64.
        return multiply_adds / (85 if self.itemsize == 4 else 40)

    def _substitution(self, n: int, c: int) -> tuple[float, float]:
        """Return (chain, work) of c columns in one block, which takes them in passes if they are few."""
        passes = math.ceil(c / PASS) if c <= PASSES_UP_TO else 1
        return (passes * math.ceil(n / STRIP) * SUBSTITUTE, self._units(n * n * c)) if c else (0.0, 0.0)

    def factor(self, n: int, c: int) -> None:
        """Add a Cholesky factorisation of order n with the solve of c columns."""
        gpu = self.gpu
        if n <= WARP_LIMIT:
            waves = max(1.0, self.batch / (gpu.multiprocessors * 8))
            passes = math.ceil(c / PASS)
            chain = FILL / 2 + constants.PIVOT * n + passes * math.ceil(n / STRIP) * SUBSTITUTE
            self.launch(waves * chain / gpu.clock)
        elif fits_block(gpu, n, self.itemsize):
            chain, work = self._substitution(n, c if c <= PASSES_UP_TO else 0)
            room = block_bytes(n, self.itemsize, False)
            self._blocks(self.batch, chain + constants.PIVOT * n, work + self._units(n**3 / 6), room)
            if c > PASSES_UP_TO:
                self.solve(n, c)
        else:
            tiles = math.ceil(n / TILE)
            rate = gpu.tensor if self.itemsize == 4 else gpu.fp64
            self.launch(FILL / gpu.clock, 2)
            self.launch(max(tiles * constants.TILE_COLUMN / gpu.clock, self.batch * n**3 / 3 / rate * 2))
            if c:
                self._solve_tiles(n, c)

    def _solve_tiles(self, n: int, c: int) -> None:
        rate = self.gpu.tensor if self.itemsize == 4 else self.gpu.fp64
        columns = math.ceil(c / COLUMNS) * COLUMNS
        chain = 2 * math.ceil(n / TILE) * constants.SOLVE_TILE / self.gpu.clock
        self.launch(max(chain, 2 * self.batch * n * n * columns / rate * 2))

    def solve(self, n: int, c: int, follows: bool = False) -> None:
        """Add a solve by the factor. follows: what the backward computes from its u, in a launch of its own beyond
        one block."""
        if n <= WARP_LIMIT or fits_block(self.gpu, n, self.itemsize):
            wide = self.batch * math.ceil(c / 32) >= CHIP // 2
            width = 32 if wide else NARROW
            chain, work = math.ceil(n / STRIP) * SUBSTITUTE, self._units(n * n * width)
            self._blocks(self.batch * math.ceil(c / width), chain, work, block_bytes(n, self.itemsize, False))
        else:
            self.launch(FILL / self.gpu.clock)
            self._solve_tiles(n, c)
            if follows:
                self.passes(2.5 * n * c)

    def fused(self, n: int, d: int, c: int, linear: bool, feature_bytes: int) -> None:
        """Add Gram matrix, factor and solve in one block per problem."""
        side = math.ceil(n / SQUARE)
        squares = side * (side + 1) // 2
        rounds, groups = math.ceil(squares / WARPS), max(1, WARPS // squares)
        # 16 features of a square in one warp: 12 loads of shared memory a feature, of which the 8 warps share the port.
        stage = 12 * STRIP * min(WARPS, squares * groups) / groups
        stage *= (1 if linear else 1.3) * (1 if self.itemsize == 4 else 2.5)
        stages = rounds * math.ceil(d / STRIP)
        chain, work = self._substitution(n, c if c <= PASSES_UP_TO else 0)
        chain += constants.PIVOT * n + stages * max(0.0, STAGE - stage)
        work += self._units(n**3 / 6) + stages * stage
        before = self.seconds
        self._blocks(self.batch, chain, work, block_bytes(n, self.itemsize, True))
        moved = self.batch * n * (d * feature_bytes + 2 * n * self.itemsize)
        self.seconds = max(self.seconds, before + self.gpu.launch + moved / self.gpu.bandwidth)
        if c > PASSES_UP_TO:
            self.solve(n, c)


def _start(p: Problem, gpu: Gpu) -> Cost:
    cost = Cost(gpu, p.batch, p.itemsize)
    cost.passes(16)  # the scalars
    return cost


def gram_costs(p: Problem, gpu: Gpu) -> dict[str, float]:
    """Return seconds for K_ss, its factor and the solve: by the tiled product and the factorisation, or fused in one
    block."""
    f = p.feature_bytes
    apart = Cost(gpu, p.batch, p.itemsize)
    apart.gram(p, p.s, p.s, triangle=True)
    apart.factor(p.s, p.c)
    costs = {"apart": apart.seconds}
    if fits_block(gpu, p.s, p.itemsize, fused=True):
        together = Cost(gpu, p.batch, p.itemsize)
        together.fused(p.s, p.d, p.c, p.linear, f)
        costs["fused"] = together.seconds
    return costs


def forward_costs(p: Problem, gpu: Gpu, chunk: int) -> dict[str, float]:
    s, q, d, c, f = p.s, p.q, p.d, p.c, p.feature_bytes
    if is_primal(p):
        n, cost = d + p.bordered, _start(p, gpu)
        cost.product(d, d, s, triangle=True, sizes=(f, f))
        cost.product(d, c, s, sizes=(f, 0))
        if p.bordered:
            cost.passes(s * (d + c), 3)
        cost.factor(n, c)
        cost.product(q, c, d, sizes=(f, 0))
        return {"primal": cost.seconds}
    solved = min(gram_costs(p, gpu).values())
    chunks = math.ceil(q / chunk) if q else 0
    dense = _start(p, gpu)
    for _ in range(min(chunks, 8)):
        dense.gram(p, min(chunk, q), s)
        dense.product(min(chunk, q), c, s)
    costs = {"dense": dense.seconds * max(1.0, chunks / 8)}
    if p.linear:
        low = _start(p, gpu)
        low.product(c, d, s, sizes=(0, f))
        low.passes(s * c)
        low.product(q, c, d, sizes=(f, 0))
        costs["low_rank"] = low.seconds
    return {name: cost + solved for name, cost in costs.items()}


def backward_costs(p: Problem, gpu: Gpu, kept: bool, chunk: int) -> dict[str, float]:
    s, q, d, c, f = p.s, p.q, p.d, p.c, p.feature_bytes
    chunks, rows = (math.ceil(q / chunk), min(chunk, q)) if q else (0, 0)
    if is_primal(p):
        n, cost = d + p.bordered, _start(p, gpu)
        cost.product(d, c, q, sizes=(f, 0))
        cost.solve(n, c, follows=True)
        cost.product(s, c, d, sizes=(f, 0))
        if p.needs_x_s:
            cost.passes(2 * s * c, 2)
            cost.product(s, c, d, sizes=(f, 0))
            cost.product(s, d, c)
            cost.product(s, d, c)
        if p.needs_x_q:
            cost.product(q, d, c)
        return {"primal": cost.seconds}

    def start(low: bool) -> Cost:
        """To U and lambda bar."""
        cost = _start(p, gpu)
        if low:
            cost.product(c, d, q, sizes=(0, f))
        if low and not kept:
            cost.product(s, c, d, sizes=(f, 0))
        for _ in range(0 if low and not kept else chunks):
            if not kept:
                cost.product(rows, s, d, distance=not p.linear, sizes=(f, f))
            cost.product(s, c, rows)
        cost.solve(s, c, follows=True)
        return cost

    def to_x_s_through_k(cost: Cost) -> None:
        cost.product(s, s, 2 * c, triangle=True)
        if not p.linear:
            cost.passes(2 * s * s, 3)
        cost.product(s, d, s, sizes=(0, f))
        if not p.linear:
            cost.passes(0)  # the launch for the form that these points do not take (csrc/krr.h)

    dense = start(low=False)
    if p.needs_x_s or not p.linear:
        to_x_s_through_k(dense)
        for _ in range(chunks):
            if not (p.linear or kept):
                dense.product(rows, s, d, distance=True, sizes=(f, f))
            dense.product(rows, s, c)
            if not p.linear:
                dense.passes(2 * rows * s + rows * d, 3)
            dense.product(s, d, rows, sizes=(0, f))
            if not p.linear:
                dense.passes(0)
            if not p.linear and p.needs_x_q:
                dense.product(rows, d, s, sizes=(0, f))
                dense.passes(0)
    if not p.linear:
        return {"dense": dense.seconds}
    low, mixed = start(low=True), start(low=True)
    if p.needs_x_s:
        low.product(2 * c, d, s, sizes=(0, f))
        low.product(s, d, 2 * c)
        to_x_s_through_k(mixed)
        mixed.product(s, d, c)
    for cost, has_w in ((dense, False), (low, p.needs_x_s), (mixed, False)):
        if p.needs_x_q:
            if not has_w:
                cost.product(c, d, s, sizes=(0, f))
            cost.product(q, d, c)
    return {"dense": dense.seconds, "low_rank": low.seconds, "mixed": mixed.seconds}
