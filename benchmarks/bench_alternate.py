"""A KRR step between two convolutions: the cost of switching between this backend and torch.

Two thread pools on the same cores would show here, as each spins while the other works. One row per backend has the
time of both alone, of both in turn, and the overhead = in turn / (sum of both alone) - 1; the aim is at most 10%.

Two other effects make "in turn" slower than "alone", whatever computes: each part finds the other's data in the caches,
and glibc returns memory of these sizes to the system between them (thousands of page faults per call). So "alone" is
measured with cold caches (``overhead``) and with warm ones (``overhead_warm``), and glibc is told to keep its memory.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from timing import arguments, write

from ssdd_ext.bench import ALTERNATIVES, Problem, interleaved, machine, measure, summary

PROBLEMS = (Problem(100, 1024, 2048, 10), Problem(500, 1024, 2048, 10))
BACKENDS = ("ssdd_ext", "PyTorch, usual", "PyTorch, planned")
IMAGES = (32, 32, 32, 32)  # N, channels, height, width: about as long as the smaller problem
LIMIT = 0.10
SWEEP_BYTES = 256 * 2**20


def keep_memory() -> None:
    """Set glibc to no mmap for large blocks and no trimming of the heap (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)
        libc.mallopt(-1, 2**31 - 1)


def cold(call: Callable[[], Any], repeats: int, swept: int) -> list[float]:
    """Measure seconds of single calls, each after reading ``swept`` bytes: more memory than the caches hold."""
    sweep, samples = np.zeros(swept // 8), []
    for _ in range(repeats):
        sweep += 1
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return samples


def alternate(
    problem: Problem, name: str, repeats: int, seconds: float, images: tuple[int, ...], swept: int = SWEEP_BYTES
) -> dict[str, Any]:
    """Return one row: seconds of the KRR step, of the convolution (forward and backward), and of one after the
    other."""
    inputs = problem.inputs()
    error = measure.errors(ALTERNATIVES[name], problem, inputs, measure.truth(problem, inputs))
    net = torch.nn.Conv2d(images[1], images[1], 3, padding=1).to(problem.device)
    batch = torch.randn(images, device=problem.device)
    krr = partial(measure.step, ALTERNATIVES[name], problem, inputs)

    def convolution() -> None:
        torch.autograd.grad(net(batch).square().mean(), list(net.parameters()))

    def in_turn() -> None:
        krr()
        convolution()

    calls = {"krr": krr, "convolution": convolution, "in_turn": in_turn}
    times = {n: summary(t) for n, t in interleaved(calls, problem.device, repeats, seconds).items()}
    times |= {f"{n}_cold": summary(cold(calls[n], 2 * repeats, swept)) for n in ("krr", "convolution")}

    def overhead(state: str) -> float:
        alone: float = times["krr" + state]["median"] + times["convolution" + state]["median"]
        return times["in_turn"]["median"] / alone - 1

    return {
        "alternative": name,
        "problem": asdict(problem),
        "images": list(images),
        "seconds": times,
        "overhead": overhead("_cold"),
        "overhead_warm": overhead(""),
        "limit": LIMIT,
        "error": error,
        **machine.describe(problem.device),
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    a = arguments(__doc__, 10.0, argv)
    keep_memory()
    rows = []
    for problem in PROBLEMS:
        if a.quick:
            problem = replace(problem, s=20, q=50, d=40)
        for name in BACKENDS:
            images, swept = ((2, 4, 8, 8), 2**20) if a.quick else (IMAGES, SWEEP_BYTES)
            row = alternate(replace(problem, device=a.device), name, a.repeats, a.seconds, images, swept)
            rows.append(row)
            t = {n: 1e3 * v["median"] for n, v in row["seconds"].items()}
            parts = (f"{what} {t[what]:.2f} ms (cold {t[what + '_cold']:.2f})" for what in ("krr", "convolution"))
            print(
                f"S={problem.s} {name:18} {' + '.join(parts)}, in turn {t['in_turn']:.2f} ms: "
                f"{100 * row['overhead']:+.1f}% (at most {100 * LIMIT:g}%), {100 * row['overhead_warm']:+.1f}% of warm",
                flush=True,
            )
    write(a, "alternate", rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
