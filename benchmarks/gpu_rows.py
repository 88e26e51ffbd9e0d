"""Loss and gradients of KRR, and the factorisation alone, on a GPU: as called, and replayed from a CUDA graph.

The rows and aims are those of the floors in ``results/sass.md``. Each alternative's error stands beside its time. The
first row says what a call costs before any work: the same call on a problem of two points.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timing import arguments, write
from torch import Tensor

import ssdd_ext
from ssdd_ext.bench import Problem, interleaved, machine, measure, measure_problem, seconds_text, summary, table

# Microseconds in a graph on an H100.
KRR = (
    (Problem(2, 2, 4, 1), None),  # what the launches and Python cost
    (Problem(10, 1024, 2048, 10), 20),
    (Problem(100, 1024, 4096, 512), 60),
    (Problem(1000, 1024, 8192, 512, bias=1.0), 800),
    (Problem(100, 256, 512, 10, b=64), 100),
)
CHOLESKY = ((64, 128, 15), (1, 512, 60), (64, 512, 250), (1, 2048, 500))

Row = dict[str, Any]


def ours(k: Tensor) -> Tensor:
    return ssdd_ext.cholesky(k, on_failure="nan")


def torch_cholesky(k: Tensor) -> Tensor:
    # Without its look at the status, which a graph cannot have.
    factor: Tensor = torch.linalg.cholesky_ex(k).L
    return factor


FACTORISATIONS: dict[str, Callable[[Tensor], Tensor]] = {"ssdd_ext": ours, "PyTorch": torch_cholesky}


def cholesky_rows(batch: int, n: int, device: str, repeats: int, seconds: float) -> list[Row]:
    """The factor of ``batch`` well-conditioned matrices [n, n] in float32; error: |L L^T - K| / |K| in float64."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(batch, n, n + 8, generator=generator).to(device)
    k = x @ x.mT / n + torch.eye(n, device=device)
    calls = {name: partial(factorise, k) for name, factorise in FACTORISATIONS.items()}
    rows = []
    for name, call in calls.items():
        factor = call().double().tril()
        error = float((factor @ factor.mT - k.double()).norm() / k.double().norm())
        size = {"batch": batch, "n": n}
        rows.append({"alternative": name, "does": "factor", "problem": size, "error": {"factor": error}})
    eager, graph = {}, {}
    if all(row["error"]["factor"] < 1e-4 for row in rows):  # nothing wrong is timed
        eager = interleaved(calls, device, repeats, seconds)
        if device == "cuda":
            graph = interleaved(
                {n: measure.captured(c) for n, c in calls.items()}, device, repeats, seconds, ahead=True
            )
    for row in rows:
        name = row["alternative"]
        row["seconds"] = summary(eager[name]) if name in eager else None
        row["graph_seconds"] = summary(graph[name]) if name in graph else None
        row |= machine.describe(device)
    return rows


def line(row: Row) -> str:
    times = [seconds_text(t["median"]) if (t := row[key]) else "-" for key in ("seconds", "graph_seconds")]
    size = f"{row['problem']['batch']}x{row['problem']['n']}"
    return f"Cholesky {size:8} {row['alternative']:10} {times[0]:>9}  graph {times[1]:>9}  {row['error']['factor']:.1e}"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    a = arguments(__doc__, 6.0, argv)
    rows: list[Row] = []
    for problem, aim in KRR:
        if a.quick:
            problem = replace(problem, q=min(problem.q, 32), s=min(problem.s, 20), d=min(problem.d, 40), c=2)
        measured = measure_problem(
            replace(problem, device=a.device),
            alternatives=["ssdd_ext", "PyTorch, usual", "PyTorch, Cholesky", "PyTorch, planned"],
            repeats=a.repeats,
            seconds=a.seconds,
            memory=a.device == "cuda",
        )
        measured[0]["aim_us"] = aim
        print(table(measured), end="\n\n", flush=True)
        rows += measured
    for batch, n, aim in CHOLESKY:
        measured = cholesky_rows(batch, min(n, 16) if a.quick else n, a.device, a.repeats, a.seconds)
        measured[0]["aim_us"] = aim
        print("\n".join(map(line, measured)), flush=True)
        rows += measured
    write(a, "all", rows)
    missing = [row["problem"] for row in rows if row["alternative"] == "ssdd_ext" and row["seconds"] is None]
    if missing:
        raise SystemExit(f"ssdd_ext was wrong beyond rounding, or failed, on {missing}")
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
