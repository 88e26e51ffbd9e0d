"""Every public call once on new random inputs, with the error of values and gradients against float64.

It runs first after a build: in a few seconds it shows whether the kernels run at all, and which do not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from journal import Item, open_journal, run_items, step_parser
from switches import one_cluster, one_pass_of_any_batch, products_for_distances
from torch import Tensor

import ssdd_ext
from ssdd_ext import RBF, Laplace, Linear, Ridge
from ssdd_ext.testing import relative_error

LINEAR, RIDGE = Linear(1.0, 1.0), Ridge.trace(1e-2)
LIMITS = {torch.float32: 2e-3, torch.float64: 1e-9, torch.bfloat16: 2e-2}
"""Relative errors beyond which a call is wrong, not rounded; of gradients, in the Frobenius norm."""

Call = Callable[..., Tensor]


def inputs(sizes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return standard normal leaves; with 16-bit features (the first and third), the others are float32."""
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)))
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    kinds = [dtype if i % 2 == 0 else wide for i in range(len(sizes))]
    return [
        torch.randn(size, generator=generator, dtype=torch.float64).to(device, kind).requires_grad_()
        for size, kind in zip(sizes, kinds, strict=True)
    ]


def check(call: Call, reference: Call, leaves: list[Tensor]) -> dict[str, Any]:
    """Run ``call`` and ``reference`` (in float64 on the CPU) and compare values and all gradients."""
    value = call(*leaves)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    gradients = torch.autograd.grad(value, leaves, weight.to(value.device))
    exact = [t.detach().double().cpu().requires_grad_() for t in leaves]
    expected = reference(*exact)
    answers = torch.autograd.grad(expected, exact, weight.double())
    pairs = zip((value, *gradients), (expected, *answers), strict=True)
    errors = [relative_error(got.detach().double().cpu(), right) for got, right in pairs]
    worst, limit = max(errors), LIMITS[leaves[0].dtype]
    if not worst <= limit:  # also catches NaN
        raise AssertionError(f"relative errors of value and gradients {errors}, at most {limit:g} expected")
    return {"error": worst, "text": f"error {worst:.1e}"}


def krr_items(device: str, quick: bool) -> Iterator[Item]:
    rungs = (10, 32, 70) if quick else (10, 32, 70, 220, 300, 1000)
    for s in rungs:
        sizes = ((2, s, 70), (2, s, 8), (2, 60, 70), (2, 60, 8))
        for kernel in (LINEAR, RBF(9.0), Laplace(70.0, norm=1)):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                if dtype == torch.bfloat16 and device == "cpu":
                    continue
                if s > 300 and dtype != torch.float32:
                    continue
                call = partial(ssdd_ext.krr_mse, kernel=kernel, ridge=RIDGE, on_failure="jitter")
                yield (
                    f"krr_mse S={s} {type(kernel).__name__} {str(dtype).removeprefix('torch.')}",
                    lambda c=call, z=sizes, t=dtype: check(
                        partial(c, backend="native"), partial(c, backend="torch"), inputs(z, t, device)
                    ),
                )


def spd(a: Tensor) -> Tensor:
    return a @ a.mT / a.shape[-1] + torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)


def other_items(device: str, quick: bool) -> Iterator[Item]:
    n = 60 if quick else 300
    square = {"gram": ((n, 90), (70, 90)), "cholesky": ((2, n, n),), "solve": ((2, n, n), (2, n, 8))}

    def gram(backend: str, kernel: Any, x: Tensor, z: Tensor) -> Tensor:
        return ssdd_ext.gram(x, z, kernel=kernel, backend=backend)

    def cholesky(backend: str, a: Tensor) -> Tensor:
        return ssdd_ext.cholesky(spd(a), backend=backend)

    def solve(backend: str, a: Tensor, y: Tensor) -> Tensor:
        return ssdd_ext.cholesky_solve(spd(a), y, ridge=RIDGE, backend=backend)

    def krr(backend: str, x_s: Tensor, y_s: Tensor, x_q: Tensor) -> Tensor:
        return ssdd_ext.krr(x_s, y_s, x_q, kernel=LINEAR, ridge=RIDGE, backend=backend)

    def fit(backend: str, x_s: Tensor, y_s: Tensor, x_q: Tensor) -> Tensor:
        return ssdd_ext.fit(x_s, y_s, kernel=RBF(9.0), ridge=RIDGE, backend=backend).predict(x_q)

    def from_gram(backend: str, a: Tensor, y: Tensor, k_qs: Tensor) -> Tensor:
        return ssdd_ext.krr_from_gram(spd(a), y, k_qs, ridge=RIDGE, backend=backend)

    def mse_from_gram(backend: str, a: Tensor, y: Tensor, k_qs: Tensor, y_q: Tensor) -> Tensor:
        return ssdd_ext.krr_mse_from_gram(spd(a), y, k_qs, y_q, ridge=RIDGE, backend=backend)

    def solve_in_clusters(backend: str, a: Tensor, y: Tensor) -> Tensor:
        with one_cluster():
            return solve(backend, a, y)

    def gram_by_products(backend: str, x: Tensor, z: Tensor) -> Tensor:
        with products_for_distances():
            return gram(backend, RBF(13.0), x, z)

    def mse(backend: str, x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor) -> Tensor:
        with one_pass_of_any_batch():
            return ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, kernel=LINEAR, ridge=RIDGE, backend=backend)

    points = ((n, 90), (n, 8), (70, 90))
    grams = ((n, n), (n, 8), (70, n), (70, 8))
    table: list[tuple[str, Call, tuple[tuple[int, ...], ...]]] = [
        ("gram Linear", lambda b, x, z: gram(b, LINEAR, x, z), square["gram"]),
        ("gram RBF", lambda b, x, z: gram(b, RBF(9.0), x, z), square["gram"]),
        ("gram RBF, distances by products", gram_by_products, ((n, 150), (70, 150))),
        ("gram Laplace, 1-norm", lambda b, x, z: gram(b, Laplace(90.0, norm=1), x, z), square["gram"]),
        ("cholesky", cholesky, square["cholesky"]),
        ("cholesky_solve", solve, square["solve"]),
        ("cholesky_solve in one cluster", solve_in_clusters, square["solve"]),
        ("krr", krr, points),
        ("krr primal", krr, ((n, 9), (n, 8), (70, 9))),
        ("krr_mse, one pass, few points", mse, ((20, 300), (20, 8), (70, 300), (70, 8))),
        ("krr_mse, one pass", mse, ((2, 60, 520), (2, 60, 5), (2, 70, 520), (2, 70, 5))),
        ("fit.predict", fit, points),
        ("krr_from_gram", from_gram, grams[:3]),
        ("krr_mse_from_gram", mse_from_gram, grams),
    ]
    for name, call, sizes in table:
        yield (
            name,
            lambda c=call, z=sizes: check(partial(c, "native"), partial(c, "torch"), inputs(z, torch.float32, device)),
        )


def replay(device: str) -> dict[str, Any]:
    """Check that forward and backward, captured in a CUDA graph, give the bits of the eager call."""
    leaves = inputs(((300, 64), (300, 8), (60, 64), (60, 8)), torch.float32, device)

    def step() -> tuple[Tensor, ...]:
        loss = ssdd_ext.krr_mse(*leaves, kernel=LINEAR, ridge=RIDGE, on_failure="nan", backend="native")
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    from ssdd_ext.bench.measure import capture

    expected = [t.clone() for t in step()]
    got = capture(step)()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), "a replayed graph gives other bits"
    return {"text": "same bits"}


def items(device: str, quick: bool) -> Iterator[Item]:
    if device == "cuda":
        yield "torch alone", lambda: {"text": f"{float(torch.ones(8, device=device).sum())}"}
    yield from other_items(device, quick)
    yield from krr_items(device, quick)
    if device == "cuda":
        yield "krr_mse in a CUDA graph", partial(replay, device)


def main(argv: Sequence[str] | None = None) -> int:
    a = step_parser(__doc__, "smoke").parse_args(argv)
    journal = open_journal(a.out, "smoke")
    return 0 if run_items(items(a.device, a.quick), journal) else 1


if __name__ == "__main__":
    sys.exit(main())
