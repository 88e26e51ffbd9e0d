"""Measure the assumptions of the GPU's cost model (ssdd_ext/plan/constants.py): ``gpu_constants.json``.

Each constant is the slope or the difference of times of public calls, replayed from CUDA graphs. So it includes
everything that a kernel does around the instructions that are counted for it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from journal import Item, open_journal, run_items, step_parser
from switches import dependent_launch, one_cluster, products_for_distances
from torch import Tensor

import ssdd_ext
from ssdd_ext import RBF, Ridge, plan
from ssdd_ext.bench import interleaved, measure

Timer = Callable[..., dict[str, float]]


def seconds(device: str, repeats: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """Return medians by name; on a GPU of replayed graphs, in turn."""
    if device == "cuda":
        calls = {name: measure.capture(call) for name, call in calls.items()}
    samples = interleaved(calls, device, repeats, 3.0, settle=0.0, ahead=device == "cuda")
    return {name: statistics.median(values) for name, values in samples.items()}


def matrices(batch: int, n: int, device: str) -> Tensor:
    """Return well-conditioned symmetric positive definite float32 matrices [batch, n, n]."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(batch, n, n + 8, generator=generator).to(device)
    return x @ x.mT / n + torch.eye(n, device=device)


def cycles(value: float, device: str) -> float | None:
    """Convert seconds to cycles of the device's highest clock."""
    if device != "cuda":
        return None
    clock = getattr(torch.cuda.get_device_properties(0), "clock_rate", 0)  # kHz; some versions of torch do not tell
    return value * clock * 1e3 if clock else None


def factor(k: Tensor) -> Tensor:
    return ssdd_ext.cholesky(k, on_failure="nan", backend="native")


def solve(k: Tensor, y: Tensor) -> Tensor:
    return ssdd_ext.cholesky_solve(k, y, ridge=Ridge.absolute(0.0), on_failure="nan", backend="native")


def slope(time: Timer, device: str, sizes: tuple[int, int], per: int) -> dict[str, Any]:
    """Return seconds and cycles that the factorisation of one matrix takes per ``per`` columns, between two orders."""
    small, large = sizes
    t = time(
        device, small=partial(factor, matrices(1, small, device)), large=partial(factor, matrices(1, large, device))
    )
    value = (t["large"] - t["small"]) / (large - small) * per
    found = {"orders": sizes, "seconds": value, "cycles": cycles(value, device), "times": t}
    return {"value": found, "text": f"{value * 1e9:.0f} ns"}


def solve_tile(time: Timer, device: str, n: int, c: int) -> dict[str, Any]:
    """Measure one tile of the tiled solve: the time that a solve adds to its factorisation, both ways, per tile."""
    k = matrices(1, n, device)
    y = torch.randn(1, n, c, device=device)
    t = time(device, factor=partial(factor, k), solve=partial(solve, k, y))
    value = (t["solve"] - t["factor"]) / (2 * max(1, n // 64))
    found = {"n": n, "c": c, "seconds": value, "cycles": cycles(value, device), "times": t}
    return {"value": found, "text": f"{value * 1e9:.0f} ns"}


def launch_gap(time: Timer, device: str, count: int) -> dict[str, Any]:
    """Measure the time from one kernel of a graph to the next: many kernels of one block, less the first."""
    x = torch.zeros(32, device=device)

    def many(n: int) -> None:
        for _ in range(n):
            x.add_(1)

    t = time(device, one=partial(many, 1), all=partial(many, count))
    value = (t["all"] - t["one"]) / (count - 1)
    return {"value": {"seconds": value, "times": t}, "text": f"{value * 1e9:.0f} ns"}


def dependent_gap(time: Timer, device: str, count: int) -> dict[str, Any]:
    """Measure the time that a factorisation of order 8 adds to a graph of many, with dependent launches and without.

    One of them is two launches of few cycles.
    """
    k = matrices(1, 8, device)

    def many(n: int, dependent: bool) -> None:
        with dependent_launch() if dependent else nullcontext():
            for _ in range(n):
                factor(k)

    ways = {"ordinary": False, "dependent": True}
    calls = {f"{way}_{n}": partial(many, n, on) for way, on in ways.items() for n in (1, count)}
    t = time(device, **calls)
    gaps = {way: (t[f"{way}_{count}"] - t[f"{way}_1"]) / (count - 1) for way in ways}
    text = ", ".join(f"{way} {value * 1e9:.0f} ns" for way, value in gaps.items())
    return {"value": {"seconds": gaps, "times": t}, "text": text}


def rate(time: Timer, device: str, m: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    """Measure FLOPs per second of a product [m, k] x [k, m], ours and torch's."""
    x, z = (torch.randn(m, k, device=device).to(dtype) for _ in range(2))
    t = time(device, ours=lambda: ssdd_ext.gram(x, z, backend="native"), torch=lambda: x @ z.mT)
    values = {name: 2 * m * m * k / value for name, value in t.items()}
    text = ", ".join(f"{name} {value / 1e12:.1f} TF/s" for name, value in values.items())
    return {
        "value": {"m": m, "k": k, "flops": values["ours"], "torch_flops": values["torch"], "times": t},
        "text": text,
    }


def halves(time: Timer, device: str, s: int, q: int, d: int, c: int) -> dict[str, Any]:
    """Measure large float32 products from half-precision instructions beside those from TF32, in one Gram matrix and in
    one regression with gradients: seconds, and errors relative to float64."""
    generator = torch.Generator().manual_seed(s)
    sizes = ((s, d), (s, c), (q, d), (q, c))
    inputs = [torch.randn(*size, generator=generator).to(device).requires_grad_() for size in sizes]

    def product(x: list[Tensor]) -> list[Tensor]:
        return [ssdd_ext.gram(x[2].detach(), x[0].detach(), backend="native")]

    def regression(x: list[Tensor]) -> list[Tensor]:
        loss = ssdd_ext.krr_mse(*x, ridge=Ridge.trace(1e-3), on_failure="nan", backend="native")
        return list(torch.autograd.grad(loss, x[:1]))

    def run(call: Callable[[list[Tensor]], list[Tensor]], on: bool, x: list[Tensor]) -> list[Tensor]:
        plan.gpu.HALVES = on
        try:
            return call(x)
        finally:
            plan.gpu.HALVES = False

    found: dict[str, Any] = {"s": s, "q": q, "d": d, "c": c}
    for call in (product, regression):
        exact = call([x.detach().double().requires_grad_() for x in inputs])[0]
        ways = {"halves": partial(run, call, True, inputs), "tf32": partial(run, call, False, inputs)}
        errors = {way: float((f()[0].double() - exact).norm() / exact.norm()) for way, f in ways.items()}
        found[call.__name__] = {"seconds": time(device, **ways), "errors": errors}
    parts = [
        f"{name}: {v['seconds']['halves'] * 1e6:.0f} us against {v['seconds']['tf32'] * 1e6:.0f}, "
        f"error {v['errors']['halves']:.1e} against {v['errors']['tf32']:.1e}"
        for name, v in found.items()
        if isinstance(v, dict)
    ]
    return {"value": found, "text": "; ".join(parts)}


def clusters(time: Timer, device: str, batch: int, n: int) -> dict[str, Any]:
    """Measure the factorisation in one cluster of blocks beside the portable one: seconds, and |L L^T - K| / |K|."""
    k = matrices(batch, n, device)

    def in_clusters() -> Tensor:
        with one_cluster():
            return factor(k)

    ways = {"cluster": in_clusters, "tiles": partial(factor, k)}
    found: dict[str, Any] = {"batch": batch, "n": n, "seconds": time(device, **ways), "errors": {}}
    for way, call in ways.items():
        low = call().double().tril()
        found["errors"][way] = float((low @ low.mT - k.double()).norm() / k.double().norm())
    (one, other), errors = found["seconds"].values(), found["errors"].values()
    text = f"{one * 1e6:.1f} us against {other * 1e6:.1f}, error " + " against ".join(f"{e:.1e}" for e in errors)
    return {"value": found, "text": text}


def distances(time: Timer, device: str, s: int, q: int, d: int, apart: float) -> dict[str, Any]:
    """Measure Gram matrices of RBF by products beside those by differences: seconds, and the largest errors in units of
    float32's roundoff. apart: between three clusters of points."""
    generator = torch.Generator().manual_seed(s)
    x, z = (
        torch.randn(n, d, generator=generator) + apart * torch.randint(0, 3, (n, 1), generator=generator)
        for n in (s, q)
    )
    x, z, kernel = x.to(device), z.to(device), RBF(d**0.5)

    def gram(x: Tensor, z: Tensor) -> Tensor:
        return ssdd_ext.gram(x, z, kernel=kernel, backend="native")

    def by_products() -> Tensor:
        with products_for_distances():
            return gram(x, z)

    exact = gram(x.double(), z.double())
    ways = {"products": by_products, "differences": partial(gram, x, z)}
    errors = {way: float((call() - exact).abs().max()) * 2.0**24 for way, call in ways.items()}
    found = {"s": s, "q": q, "d": d, "apart": apart, "seconds": time(device, **ways), "errors": errors}
    (one, other), units = found["seconds"].values(), errors.values()
    text = f"{one * 1e6:.1f} us against {other * 1e6:.1f}, error " + " against ".join(f"{e:.1f} u" for e in units)
    return {"value": found, "text": text}


def bandwidth(time: Timer, device: str, size: int) -> dict[str, Any]:
    """Measure bytes per second, read and written, of a copy inside the device's memory."""
    x = torch.empty(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    t = time(device, copy=lambda: y.copy_(x))
    value = 2 * size / t["copy"]
    return {"value": {"bytes_per_second": value, "times": t}, "text": f"{value / 1e12:.2f} TB/s"}


def items(device: str, quick: bool) -> Iterator[Item]:
    time: Timer = partial(lambda repeats, device, **calls: seconds(device, repeats, **calls), 3 if quick else 15)
    small = 64 if quick else 4096
    yield "launch gap in a graph", lambda: launch_gap(time, device, 8 if quick else 200)
    yield "memory", lambda: bandwidth(time, device, 1 << (16 if quick else 29))
    yield "pivot, one warp", lambda: slope(time, device, (8, 32), 1)
    yield "pivot, one block", lambda: slope(time, device, (48, 80) if quick else (64, 192), 1)
    yield "tile column of the factor", lambda: slope(time, device, (260, 324) if quick else (512, 2048), 64)
    yield "tile of the solve, 64 columns", lambda: solve_tile(time, device, 256 if quick else 1024, 64)
    yield "tile of the solve, 512 columns", lambda: solve_tile(time, device, 256 if quick else 1024, 512)
    for shape in ((64, 70, 48, 5),) if quick else ((1000, 1024, 8192, 512), (100, 1024, 4096, 512)):
        yield f"halves beside TF32, S={shape[0]}", lambda shape=shape: halves(time, device, *shape)
    for batch, n in ((1, 80),) if quick else ((1, 256), (1, 384), (1, 512), (16, 256), (16, 512)):
        yield f"cluster beside tiles, {batch}x{n}", lambda b=batch, n=n: clusters(time, device, b, n)
    for s, q, d, apart in (
        ((64, 70, 130, 0.0),)
        if quick
        else ((1000, 1024, 8192, 0.0), (1000, 1024, 512, 0.0), (100, 1024, 4096, 0.0), (1000, 1024, 8192, 1e3))
    ):
        name = f"distances by products, S={s} D={d}" + (", three clusters" if apart else "")
        yield name, lambda s=s, q=q, d=d, apart=apart: distances(time, device, s, q, d, apart)
    for name, k, dtype in (
        ("fp32 on the tensor cores", small, torch.float32),
        ("fp32 on the plain units (k = 32)", 32, torch.float32),
        ("bf16 features", small, torch.bfloat16),
        ("fp64", small // 4, torch.float64),
    ):
        if dtype == torch.bfloat16 and device == "cpu":
            continue
        yield (
            f"product, {name}",
            lambda k=k, dtype=dtype: rate(time, device, small // (4 if dtype == torch.float64 else 1), k, dtype),
        )
    yield "dependent launch, order 8 in a graph", lambda: dependent_gap(time, device, 4 if quick else 50)


def main(argv: Sequence[str] | None = None) -> int:
    a = step_parser(__doc__, "constants", also="gpu_constants.json").parse_args(argv)
    journal = open_journal(a.out, "constants")
    good = run_items(items(a.device, a.quick), journal)
    if a.out:
        values = {line["end"]: line["value"] for line in journal.ended() if "value" in line}
        if a.device == "cuda":
            properties = torch.cuda.get_device_properties(0)
            values["device"] = {
                "name": properties.name,
                "clock_rate": getattr(properties, "clock_rate", None),
                "multiprocessors": properties.multi_processor_count,
            }
        (a.out / "gpu_constants.json").write_text(json.dumps(values, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
