"""The work of each call of the speed table on a GPU: launches, FLOPs, traffic, and the floor that follows for an H100.

Launches are those the host code makes at the true sizes (twin.ask: no kernel runs). What a launch computes and moves is
a formula of its arguments; tests/simt/test_rows.py holds each to what the twin counts at a size that it can run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import twin

# H100: TF/s of three TF32 products at the data sheet's rate, the same through mma.sync, fp32; bytes a second.
SHEET, MMA, FP32, MEMORY = 165e12, 104e12, 67e12, 3.35e12
LAUNCH = 2.5  # us from one kernel of a graph to the next: an estimate
PIVOT = 100 / 1.7e3  # us: a square root, a reciprocal and a shuffle, about 100 cycles one after the other: an estimate
TILE, DEPTH = 64, 16


@dataclass(frozen=True)
class Row:
    work: str
    aim: float  # us
    words: tuple[str | int, ...]  # for twin.ask
    compulsory: int  # bytes: inputs, what the forward saves, outputs, each once
    pivots: int  # one after the other


def _krr(work: str, aim: float, b: int, s: int, q: int, d: int, c: int) -> list[Row]:
    rows = []
    plans = [("low_rank", "low_rank"), ("low_rank", "mixed"), ("dense", "dense")]
    for forward, backward in plans:
        kept = q * s if forward == "dense" else 0
        each = 2 * (s * d + s * c) + q * d + q * c + (s * s + s * c + q * c + kept)
        words = ("float", "krr", b, s, q, d, c, forward, backward)
        rows.append(Row(f"{work}, {forward} / {backward}", aim, words, 4 * b * each, s))
    return rows


def _cholesky(aim: float, b: int, n: int) -> Row:
    return Row(f"Cholesky {b}x{n}", aim, ("float", "cholesky", b, n, 0), 4 * b * 3 * n * n // 2, n)


ROWS = [
    *_krr("B=1 S=10 Q=1024 D=2048 C=10", 20, 1, 10, 1024, 2048, 10),
    *_krr("B=1 S=100 Q=1024 D=4096 C=512", 60, 1, 100, 1024, 4096, 512),
    *_krr("B=1 S=1000 Q=1024 D=8192 C=512", 800, 1, 1000, 1024, 8192, 512),
    *_krr("B=64 S=100 Q=256 D=512 C=10", 100, 64, 100, 256, 512, 10),
    _cholesky(15, 64, 128), _cholesky(60, 1, 512), _cholesky(250, 64, 512), _cholesky(500, 1, 2048),
]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Of one launch. flops: needed, executed: with the padding of tiles (the twin counts these multiply-adds)."""

    flops: float = 0
    executed: float = 0
    loaded: int = 0  # bytes that lanes ask of global memory
    stored: int = 0
    tensor: bool = False
    exact: bool = True  # executed, loaded and stored are to the byte what the twin counts


def _up(x: int, to: int) -> int:
    return -(-x // to) * to


def _extents(n: int) -> list[int]:
    return [min(TILE, n - i) for i in range(0, n, TILE)]


def _product(launch: dict[str, Any]) -> Work:
    p, tiling = launch["arguments"][:2]
    b, m, n, k, size = p["batch"], p["m"], p["n"], p["k"], p["product"]
    tensor, full = launch["kernel"].startswith("tensor_kernel"), p["triangle"] == 0
    share = tiling["k_share"]
    depth = sum(_up(min(share, k - s * share), DEPTH) for s in range(tiling["splits"]) if k > s * share)
    rows, columns = _extents(m), _extents(n)
    tiles = [(r, c) for i, r in enumerate(rows) for j, c in enumerate(columns) if full or j <= i]
    wanted = m * n if full else m * (m + 1) // 2
    stored = tiling["splits"] * wanted if tiling["splits"] > 1 else wanted if p["triangle"] == 1 else m * n
    return Work(
        flops=b * wanted * k * (3 if p["distance"] else 2),
        executed=b * len(tiles) * TILE * TILE * depth * 2 * (3 if tensor else 1),
        loaded=b * sum(r + c for r, c in tiles) * k * size,
        stored=b * stored * size,
        tensor=tensor,
    )


def _join(launch: dict[str, Any]) -> Work:
    p, splits = launch["arguments"]
    wanted = p["m"] * p["n"] if p["triangle"] == 0 else p["m"] * (p["m"] + 1) // 2
    stored = wanted if p["triangle"] == 1 else p["m"] * p["n"]
    b, size = p["batch"], p["product"]
    return Work(flops=b * splits * wanted, loaded=b * splits * wanted * size, stored=b * stored * size)


def _small(launch: dict[str, Any]) -> Work:
    f, size = launch["arguments"][0], _size(launch)
    b, n, c = f["batch"], f["n"], f["c"]
    in_block = "block_kernel" in launch["kernel"]
    c = 0 if in_block and c > TILE else c
    triangle = n * (n + 1) // 2
    # Registers of the warp's x go through load and store; the block's x does not pass the counters.
    x = 0 if in_block else n * c
    written = n * n if f["zero_upper"] else triangle
    # A warp works on 32 rows whatever n is.
    steps = sum(31 - k for k in range(n))
    executed = 0 if in_block else b * steps * 2 * (31 + 2 * _up(c, 32))
    return Work(
        flops=b * (n**3 / 3 + 2 * n * n * c),
        executed=executed,
        loaded=b * (triangle + x) * size,
        stored=b * (written + x) * size,
        exact=False,
    )


def _solve(launch: dict[str, Any]) -> Work:
    n, _, c, _, _, _, chunks = launch["arguments"]
    b = launch["blocks"] // chunks
    return Work(flops=b * 2 * n * n * c, loaded=b * chunks * n * (n + 1) // 2 * _size(launch), exact=False)


def _begin(launch: dict[str, Any]) -> Work:
    f = launch["arguments"][0]
    count = f["batch"] * f["n"] * _size(launch)
    return Work(loaded=2 * count, stored=count, exact=False)


def _diagonal(launch: dict[str, Any]) -> Work:
    f, p = launch["arguments"]
    n = min(TILE, f["n"] - p)
    bytes_ = f["batch"] * n * (n + 1) // 2 * _size(launch)
    return Work(flops=f["batch"] * n**3 / 3, loaded=bytes_, stored=bytes_, exact=False)


def _panel(launch: dict[str, Any]) -> Work:
    f, p, strips = launch["arguments"]
    rest, size = f["n"] - p - TILE, _size(launch)
    block = TILE * (TILE + 1) // 2
    b = f["batch"]
    return Work(
        flops=b * rest * TILE * TILE,
        loaded=b * (strips * block + rest * TILE) * size,
        stored=b * rest * TILE * size,
        exact=False,
    )


def _substitute(launch: dict[str, Any]) -> Work:
    n, _, p, columns, _, chunks = launch["arguments"]
    size, b = min(TILE, n - p), launch["blocks"] // chunks
    triangle = launch["blocks"] * size * (size + 1) // 2
    return Work(flops=b * size * size * columns, loaded=triangle * _size(launch), exact=False)


def _copy(launch: dict[str, Any]) -> Work:
    c = launch["arguments"][0]
    count = c["batch"] * c["rows"] * c["columns"] * _size(launch)
    return Work(loaded=count, stored=count)


def _mirror(launch: dict[str, Any]) -> Work:
    n, squares, size = launch["arguments"][0], launch["arguments"][4], _size(launch)
    b, edges = launch["blocks"] // squares, [min(32, n - i) for i in range(0, n, 32)]
    read = sum(r * c for i, r in enumerate(edges) for c in edges[: i + 1])
    return Work(loaded=b * read * size, stored=b * n * (n - 1) // 2 * size)


def _column_sums(launch: dict[str, Any]) -> Work:
    c, size = launch["arguments"][0], _size(launch)
    return Work(
        flops=c["batch"] * c["rows"] * c["columns"],
        loaded=c["batch"] * c["rows"] * c["columns"] * size,
        stored=c["batch"] * c["columns"] * size,
        exact=False,  # the store's factor is read plainly
    )


def _dot(launch: dict[str, Any]) -> Work:
    count, parts, size = launch["arguments"][0], launch["arguments"][3], _size(launch)
    b = launch["blocks"] // parts
    return Work(flops=2 * b * count, loaded=2 * b * count * size, stored=launch["blocks"] * size)


def _little(launch: dict[str, Any]) -> Work:
    """A number or a row a problem: nothing beside its launch."""
    return Work(exact=False)


def _slope(launch: dict[str, Any]) -> Work:
    """Two elements read and one written for each of K; of a square half."""
    count = launch["blocks"] * launch["arguments"][1]
    count = count // 2 if launch["arguments"][6] else count
    return Work(flops=8 * count, loaded=2 * count * _size(launch), stored=count * _size(launch), exact=False)


def _shift(launch: dict[str, Any]) -> Work:
    count = launch["blocks"] * launch["arguments"][1]
    return Work(flops=count, loaded=2 * count * _size(launch), stored=count * _size(launch))


FORMULAS = {
    "tensor_kernel": _product, "plain_kernel": _product, "join_kernel": _join, "warp_kernel": _small,
    "block_kernel": _small, "solve_kernel": _solve, "begin_kernel": _begin, "diagonal_kernel": _diagonal,
    "panel_kernel": _panel, "substitute_kernel": _substitute, "copy_kernel": _copy, "mirror_kernel": _mirror,
    "sum_columns_kernel": _column_sums, "dot_kernel": _dot, "join_dots_kernel": _little, "nan_kernel": _little,
    "zero_kernel": _little,
    "scalars_kernel": _little, "lambda_bar_kernel": _little, "ridge_kernel": _little, "corner_kernel": _little,
    "hyper_kernel": _little, "alpha_sum_kernel": _little, "add_parts_kernel": _little, "rbf_hyper_kernel": _little,
    "slope_kernel": _slope, "shift_kernel": _shift,
}  # fmt: skip


def _size(launch: dict[str, Any]) -> int:
    return 8 if "double" in launch["kernel"] else 4


def work(launch: dict[str, Any]) -> Work:
    name = re.sub(r"<.*", "", launch["kernel"])
    if name not in FORMULAS:
        raise SystemExit(f"benchmarks/floors.py has no formula for what {name} computes and moves")
    return FORMULAS[name](launch)


def measure() -> list[dict[str, Any]]:
    """A row for each call and plan."""
    table = []
    for row in ROWS:
        launches = twin.ask("launches", *row.words)["launches"]
        all_work = [work(launch) for launch in launches]
        tensor = sum(w.flops for w in all_work if w.tensor)
        plain = sum(w.flops for w in all_work if not w.tensor)
        executed = sum(w.executed for w in all_work if w.tensor)
        us = {
            "sheet": (tensor / SHEET + plain / FP32) * 1e6,
            "mma": (tensor / MMA + plain / FP32) * 1e6,
            "memory": row.compulsory / MEMORY * 1e6,
        }
        table.append({
            "work": row.work, "aim_us": row.aim, "launches": len(launches),
            "gflop": (tensor + plain) / 1e9, "gflop_tensor": tensor / 1e9, "gflop_tensor_executed": executed / 3e9,
            "compulsory_mb": row.compulsory / 1e6, "asked_mb": sum(w.loaded + w.stored for w in all_work) / 1e6,
            "sheet_us": us["sheet"], "mma_us": us["mma"], "memory_us": us["memory"],
            "floor_us": max(us["mma"], us["memory"]),
            "launches_us_estimate": len(launches) * LAUNCH, "pivots_us_estimate": row.pivots * PIVOT,
        })  # fmt: skip
    return table


def text(rows: list[dict[str, Any]]) -> str:
    lines = [
        "## The calls of the speed table, on an H100, without one",
        "",
        "fp32, forward and backward (Cholesky: the factorisation), one line a plan. Launches are counted "
        "at the true sizes",
        "on the host twin; FLOPs and traffic are formulas of their arguments, held to the twin's counts",
        "(benchmarks/floors.py). GFLOP: needed (on the matrix units; there with the padding of the "
        "tiles). MB: inputs, saved",
        "and outputs once (what lanes ask of L2 in all). Floors in us: compute with three TF32 products "
        "at the data sheet's",
        f"{SHEET / 1e12:.0f} TF/s and through mma.sync at {MMA / 1e12:.0f}, fp32 at {FP32 / 1e12:.0f}; memory at",
        f"{MEMORY / 1e12:.2f} TB/s; the floor is the larger of mma.sync's and memory's. *Estimates*, not floors:",
        f"{LAUNCH} us a launch in a graph, and {PIVOT * 1e3:.0f} ns for each pivot of a factorisation, "
        f"one after the other.",
        "Nothing here was timed on a GPU.",
        "",
        "| work | aim | launches | GFLOP (matrix units; padded) | MB once (asked) | compute sheet / mma.sync | memory"
        " | floor | floor / aim | *launches* | *pivots* |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['work']} | {r['aim_us']:g} | {r['launches']} | {r['gflop']:.3g} ({r['gflop_tensor']:.3g};"
            f" {r['gflop_tensor_executed']:.3g}) | {r['compulsory_mb']:.3g} ({r['asked_mb']:.3g})"
            f" | {r['sheet_us']:.3g} / {r['mma_us']:.3g} | {r['memory_us']:.3g} | {r['floor_us']:.3g}"
            f" | {r['floor_us'] / r['aim_us']:.0%} | *{r['launches_us_estimate']:.0f}*"
            f" | *{r['pivots_us_estimate']:.0f}* |"
        )
    return "\n".join(lines) + "\n"
