"""The work of each call of the speed table on a GPU: launches, FLOPs, traffic, and the resulting floor for an H100.

Launches are those of the host code at the true sizes (twin.ask: no kernel runs). launch_work.py has the computation and
traffic of a launch.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import twin
from launch_work import work


@dataclass(frozen=True)
class Row:
    work: str
    aim: float  # us
    words: tuple[str | int, ...]  # for twin.ask
    compulsory: int  # bytes: inputs, what the forward saves, outputs, each once
    pivots: int  # one after the other
    picked: bool = True  # by the library, on an H100
    chain: float = 0  # cycles of what runs one after the other, if it was counted instead of the pivots


@lru_cache(None)
def _plans() -> Any:
    """Import ssdd_ext.plan, which is arithmetic, without the package around it, which needs torch and a build."""
    folder = twin.ROOT / "ssdd_ext" / "plan"
    where = importlib.util.spec_from_file_location(
        "ssdd_plan", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert where and where.loader
    module = importlib.util.module_from_spec(where)
    sys.modules["ssdd_plan"] = module
    where.loader.exec_module(module)
    return module


# The data sheet's FLOPs and bytes per second give the floors; estimates use measured rates.
H100 = _plans().constants
LAUNCH = H100.LAUNCH * 1e6  # us from one kernel of a graph to the next
PIVOT = H100.PIVOT / H100.CLOCK * 1e6  # us


def _krr(work: str, aim: float, b: int, s: int, q: int, d: int, c: int) -> list[Row]:
    """Return the orders of the products with a separate product for K_ss, the picked order if that is another, and one
    pass over the queries if that is picked."""
    plans = _plans()
    problem = plans.Problem(s, q, d, c, linear=True, bordered=True, batch=b)
    picked, once = plans.choose(problem, plans.Gpu()), plans.one_pass.blocks(problem) > 0
    choice = (picked.forward, picked.backward, picked.fused_gram)
    ways = [("low_rank", "low_rank", False), ("low_rank", "mixed", False), ("dense", "dense", False)]
    rows = []
    for way in ways if choice in ways else [*ways, choice]:
        forward, backward, fused = way
        kept = q * s if forward == "dense" else 0
        each = 2 * (s * d + s * c) + q * d + q * c + (s * s + s * c + q * c + kept)
        words = ("float", "krr", b, s, q, d, c, forward, backward, *(["fused"] if fused else []))
        name = f"{work}, {forward} / {backward}{', fused K_ss' if fused else ''}"
        rows.append(Row(name, aim, words, 4 * b * each, s, way == choice and not once))
    if once:
        assert s <= plans.one_pass.FACTORS or not picked.fused_gram
        each = 2 * (s * d + s * c) + q * d + q * c + (s * s + s * c + q * c)
        words = ("float", "krr", b, s, q, d, c, "low_rank", "low_rank", "one_pass")
        rows.append(Row(f"{work}, one pass", aim, words, 4 * b * each, s))
    return rows


def _cholesky(aim: float, b: int, n: int) -> Row:
    return Row(f"Cholesky {b}x{n}", aim, ("float", "cholesky", b, n, 0), 4 * b * 3 * n * n // 2, n)


# Cycles of factor_cluster.cu, counted from its machine code and the latencies of its instructions, not measured.
# GROUP, four pivots: 10 shuffles (45), four reciprocal roots with what depends on them (250), the lane's own four
# elements (12), the exchange (60), the next columns (40). STRIP_STEP: the product of a strip with 16 columns before it;
# STRIP_FIXED: its sums through shared memory to rows. ROWS: the substitution of a strip in the solve.
GROUP, STRIP_STEP, STRIP_FIXED, ROWS = 407, 180, 120, 270
PUBLISH, PRODUCT, ENDS = 900, 1600, 6300  # of a column; ends: loads, trace and stores of the matrix


def cluster_chain(n: int) -> float:
    """Count the cycles that a factorisation of order n in one cluster takes from its first load to its last store."""
    tiles, strips = -(-n // 64), 4
    before = sum(STRIP_STEP * s + (STRIP_FIXED if s else 0) for s in range(strips))
    factor = 16 * GROUP + before + strips * 100
    column = PUBLISH + strips * ROWS + before + PRODUCT
    return tiles * factor + (tiles - 1) * column + ENDS


def _in_one_cluster(row: Row) -> Row:
    b, n = row.words[2:4]
    assert isinstance(n, int)
    return replace(
        row,
        work=f"{row.work}, in one cluster",
        words=(*row.words, "cluster"),
        picked=False,
        chain=cluster_chain(n),
    )


ROWS = [
    *_krr("B=1 S=10 Q=1024 D=2048 C=10", 20, 1, 10, 1024, 2048, 10),
    *_krr("B=1 S=100 Q=1024 D=4096 C=512", 60, 1, 100, 1024, 4096, 512),
    *_krr("B=1 S=1000 Q=1024 D=8192 C=512", 800, 1, 1000, 1024, 8192, 512),
    *_krr("B=64 S=100 Q=256 D=512 C=10", 100, 64, 100, 256, 512, 10),
    _cholesky(15, 64, 128),
    _cholesky(60, 1, 512),
    _in_one_cluster(_cholesky(60, 1, 512)),
    _cholesky(250, 64, 512),
    _cholesky(500, 1, 2048),
]


def measure() -> list[dict[str, Any]]:
    """Return one row per call and plan."""
    table = []
    for row in ROWS:
        launches = twin.ask("launches", *row.words)["launches"]
        all_work = [work(launch) for launch in launches]
        tensor = sum(w.flops for w in all_work if w.tensor)
        plain = sum(w.flops for w in all_work if not w.tensor)
        executed = sum(w.executed - w.beside for w in all_work if w.tensor)
        us = {
            "sheet": (tensor / H100.SHEET_TENSOR + plain / H100.SHEET_FP32) * 1e6,
            "mma": (tensor / H100.SHEET_MMA + plain / H100.SHEET_FP32) * 1e6,
            "memory": row.compulsory / H100.SHEET_BANDWIDTH * 1e6,
        }
        table.append(
            {
                "work": row.work,
                "picked": row.picked,
                "aim_us": row.aim,
                "launches": len(launches),
                "gflop": (tensor + plain) / 1e9,
                "gflop_tensor": tensor / 1e9,
                "gflop_tensor_executed": executed / 3e9,
                "compulsory_mb": row.compulsory / 1e6,
                "asked_mb": sum(w.loaded + w.stored for w in all_work) / 1e6,
                "sheet_us": us["sheet"],
                "mma_us": us["mma"],
                "memory_us": us["memory"],
                "floor_us": max(us["mma"], us["memory"]),
                "launches_us_estimate": len(launches) * LAUNCH,
                "pivots_us_estimate": row.chain / H100.CLOCK * 1e6 if row.chain else row.pivots * PIVOT,
            }
        )
    return table


def text(rows: list[dict[str, Any]]) -> str:
    lines = [
        "## The calls of the speed table, counted for an H100",
        "",
        "fp32, forward and backward (Cholesky: the factorisation), one line per plan; the plan that the library picks",
        "on an H100 is bold (ssdd_ext/plan/gpu.py). Launches are counted at the true sizes on the host twin; FLOPs and",
        "traffic are formulas of their arguments (benchmarks/gpu/launch_work.py). For every launch of",
        "tests/simt/test_rows.py the multiply-adds, the bytes loaded and the bytes stored equal the twin's counts",
        "exactly; kernels that",
        "touch one number or one row per problem count as nothing. GFLOP: needed (on the matrix units; there with the",
        "padding of the tiles). MB: inputs, saved and outputs once (what lanes request from L2). Floors in us:",
        f"compute with three TF32 products at the data sheet's {H100.SHEET_TENSOR / 1e12:.0f} TF/s and through mma.sync"
        f" at {H100.SHEET_MMA / 1e12:.0f}, fp32 at {H100.SHEET_FP32 / 1e12:.0f};",
        f"memory at {H100.SHEET_BANDWIDTH / 1e12:.2f} TB/s; the floor is the larger of mma.sync's and memory's."
        " *Estimates*, not floors, by constants",
        f"measured on an H100 (ssdd_ext/plan/constants.py): {LAUNCH:.2f} us per launch in a graph, and"
        f" {PIVOT * 1e3:.0f} ns for each pivot of a factorisation,",
        "one after the other. For a factorisation in one cluster, whose kernel has not run on a GPU, the whole chain",
        "is counted instead (cluster_chain in benchmarks/gpu/floors.py). The calls of this table were not timed.",
        "",
        "| work | aim | launches | GFLOP (matrix units; padded) | MB once (asked) | compute sheet / mma.sync | memory"
        " | floor | floor / aim | *launches* | *pivots* |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        mark = "**" if r["picked"] else ""
        lines.append(
            f"| {mark}{r['work']}{mark} | {r['aim_us']:g} | {r['launches']}"
            f" | {r['gflop']:.3g} ({r['gflop_tensor']:.3g}; {r['gflop_tensor_executed']:.3g})"
            f" | {r['compulsory_mb']:.3g} ({r['asked_mb']:.3g})"
            f" | {r['sheet_us']:.3g} / {r['mma_us']:.3g} | {r['memory_us']:.3g} | {r['floor_us']:.3g}"
            f" | {r['floor_us'] / r['aim_us']:.0%} | *{r['launches_us_estimate']:.0f}*"
            f" | *{r['pivots_us_estimate']:.0f}* |"
        )
    return "\n".join(lines) + "\n"
