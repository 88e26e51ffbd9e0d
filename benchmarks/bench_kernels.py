"""Every kernel function beside planned PyTorch: the loss and its gradients to the support, forward and backward.

Both are timed in turn in one process, in seconds of CPU time, which a shared machine disturbs least; use one thread.
``ratio`` is planned PyTorch's minimum over ours: above 1, ours is faster.
``error`` is that of the gradient to X_s against float64, for problems of at most MOST_EXACT distances.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from timing import arguments, write
from torch import Tensor

import ssdd_ext
from ssdd_ext.bench import machine

SIZES = ((200, 512, 256, 10), (1000, 1024, 2048, 10))
MOST_EXACT = 50_000_000
RIDGE = ssdd_ext.Ridge.mean_trace(1e-2)
BACKENDS = ("auto", "planned")


def kernels(d: int) -> dict[str, ssdd_ext.Kernel]:
    length = math.sqrt(d)
    return {
        "RBF": ssdd_ext.RBF(length),
        "Laplace, 2-norm": ssdd_ext.Laplace(length),
        "Laplace, 1-norm": ssdd_ext.Laplace(float(d), norm=1),
        "Matern 3/2": ssdd_ext.Matern(length, 1.5),
        "Matern 5/2": ssdd_ext.Matern(length, 2.5),
        "RationalQuadratic": ssdd_ext.RationalQuadratic(length, 0.7),
        "Polynomial(3)": ssdd_ext.Polynomial(3, 1 / d, 0.5),
        "Cosine": ssdd_ext.Cosine(),
        "ArcCosine(0)": ssdd_ext.ArcCosine(0),
        "ArcCosine(1)": ssdd_ext.ArcCosine(1),
        "NNGP(3)": ssdd_ext.NNGP(3, 1.4, 0.3),
        "NTK(3)": ssdd_ext.NTK(3, 1.4, 0.3),
        "ARD(RBF)": ssdd_ext.ARD(ssdd_ext.RBF(1.0), torch.full((d,), length)),
        "2 * RBF": 2.0 * ssdd_ext.RBF(length),
        "RBF + Linear": ssdd_ext.RBF(length) + ssdd_ext.Linear(1 / d, 0.5),
    }


def gradients(inputs: Sequence[Tensor], kernel: ssdd_ext.Kernel, backend: str) -> tuple[Tensor, ...]:
    loss = ssdd_ext.krr_mse(*inputs, kernel=kernel, ridge=RIDGE, backend=backend)
    return torch.autograd.grad(loss, inputs[:2])


def draw(s: int, q: int, d: int, c: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((s, d), (s, c), (q, d), (q, c))
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    return [t.requires_grad_(i < 2) for i, t in enumerate(inputs)]


def row(name: str, sizes: tuple[int, int, int, int], seconds: float, repeats: int) -> dict[str, Any]:
    s, q, d, _ = sizes
    kernel, inputs = kernels(d)[name], draw(*sizes)
    found = {backend: gradients(inputs, kernel, backend)[0] for backend in BACKENDS}
    error = None
    if s * q * d <= MOST_EXACT:
        wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
        exact = gradients(wide, kernel, "planned")[0]
        error = {b: float((g.double() - exact).norm() / exact.norm()) for b, g in found.items()}
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    end = time.perf_counter() + seconds
    while not times["auto"] or (time.perf_counter() < end and len(times["auto"]) < repeats):
        for backend in BACKENDS:
            start = time.process_time()
            gradients(inputs, kernel, backend)
            times[backend].append(time.process_time() - start)
    least = {backend: min(t) for backend, t in times.items()}
    return {
        "kernel": name,
        "sizes": dict(zip("sqdc", sizes, strict=True)),
        "samples": len(times["auto"]),
        "seconds": {"ours": least["auto"], "planned": least["planned"]},
        "ratio": least["planned"] / least["auto"],
        "error": error and {"ours": error["auto"], "planned": error["planned"]},
        "backend": ssdd_ext.explain(*inputs[:3], kernel=kernel, ridge=RIDGE).partition(" ")[0],
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    a = arguments(__doc__, 3.0, argv)
    rows: list[dict[str, Any]] = []
    for sizes in ((7, 9, 5, 2),) if a.quick else SIZES:
        for name in kernels(sizes[2]):
            rows.append(row(name, sizes, a.seconds, a.repeats) | {"threads": a.threads} | machine.describe("cpu"))
            print(f"{sizes!s:24}{name:20}{rows[-1]['ratio']:6.2f}  {rows[-1]['backend']}", flush=True)
    write(a, "kernels", rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
