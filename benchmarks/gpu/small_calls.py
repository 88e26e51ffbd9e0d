"""Calls for compute-sanitizer: every kernel and plan at small sizes; a result that is not finite is an error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from switches import one_cluster, one_pass_of_any_batch, products_for_distances

import ssdd_ext
from ssdd_ext import RBF, Laplace, Linear, Ridge, plan


def call(device: str, s: int, d: int, c: int, kernel: Any, dtype: torch.dtype) -> None:
    """Compute loss and gradients of two problems of S points, D features and C targets."""
    generator = torch.Generator().manual_seed(s)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = ((s, d, dtype), (s, c, wide), (70, d, dtype), (70, c, wide))
    inputs = [torch.randn(2, n, m, generator=generator).to(device, kind).requires_grad_() for n, m, kind in sizes]
    loss = ssdd_ext.krr_mse(*inputs, kernel=kernel, ridge=Ridge.trace(1e-2), on_failure="jitter", backend="native")
    for value in (loss, *torch.autograd.grad(loss.sum(), inputs)):
        assert torch.isfinite(value).all(), (s, d, c, kernel, dtype)
    print(f"S={s} D={d} C={c} {kernel} {dtype}", flush=True)


ORDERS = tuple(product(("dense", "low_rank"), ("dense", "low_rank", "mixed")))
THIN = (("dense", "mixed"), ("low_rank", "low_rank"))


def run(device: str, orders: tuple[tuple[str, str], ...]) -> None:
    rungs = [(10, torch.float32), (70, torch.float32), (300, torch.float32), (70, torch.float64)]
    if device == "cuda":
        rungs.append((40, torch.bfloat16))  # the CPU's core reads no 16-bit features
    for s, dtype in rungs:
        call(device, s, 33, 5, RBF(8.0), dtype)
        call(device, s, 33, 5, Laplace(33.0, norm=1), dtype)
        with products_for_distances():
            call(device, s, 150, 5, RBF(12.0), dtype)
        for forward, backward in orders:
            with plan.force(forward=forward, backward=backward):
                # Multiples of 4 are copied 16 bytes at a time, other sizes 4.
                call(device, s, 333, 5, Linear(1.0, 1.0), dtype)
                call(device, s, 336, 8, Linear(1.0, 1.0), dtype)
        call(device, s, 9, 5, Linear(1.0, 1.0), dtype)  # fewer features than points: the primal
    with one_pass_of_any_batch():
        for s in (20, 60):
            call(device, s, 520, 5, Linear(1.0, 1.0), torch.float32)
    choose = plan.choose
    plan.choose = lambda *a: replace(choose(*a), fused_gram=device == "cuda")  # type: ignore[assignment]
    try:
        for s in (20, 150):
            call(device, s, 200, 5, Linear(1.0, 1.0), torch.float32)
            call(device, s, 200, 5, RBF(20.0), torch.float32)
    finally:
        plan.choose = choose
    if orders is not THIN:  # racecheck has no time left for it; the host twin's ThreadSanitizer looks for its races
        with one_cluster():
            call(device, 300, 200, 5, RBF(20.0), torch.float32)
    print("every call returned finite numbers")


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    p.add_argument("--thin", action="store_true", help="two orders of the products, not all six")
    a = p.parse_args(argv)
    run(a.device, THIN if a.thin else ORDERS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
