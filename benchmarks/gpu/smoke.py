"""Every public call once on new random inputs, with the error of values and gradients against float64.

It runs first after a build: in a few seconds it shows whether the kernels run at all, and which do not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from journal import Item, open_journal, run_items, step_parser
from switches import dependent_launch, one_cluster, one_pass_of_any_batch, products_for_distances
from torch import Tensor

import ssdd_ext
from ssdd_ext import RBF, Laplace, Linear, Ridge
from ssdd_ext.testing import relative_error

LINEAR, RIDGE = Linear(1.0, 1.0), Ridge.trace(1e-2)
LIMITS = {torch.float32: 2e-3, torch.float64: 1e-9, torch.bfloat16: 2e-2}
"""Relative errors beyond which a call is wrong, not rounded; of gradients, in the Frobenius norm."""

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A call on new inputs of these sizes, and its reference."""

    name: str
    native: Call
    reference: Call
    sizes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32


def inputs(sizes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return standard normal leaves; with 16-bit features (the first and third), the others are float32."""
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)))
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    kinds = [dtype if i % 2 == 0 else wide for i in range(len(sizes))]
    return [
        torch.randn(size, generator=generator, dtype=torch.float64).to(device, kind).requires_grad_()
        for size, kind in zip(sizes, kinds, strict=True)
    ]


def results(call: Call, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the value of ``call`` and the gradients of its weighted sum to all leaves."""
    value = call(*leaves)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape).to(value.device)
    return value.detach(), *torch.autograd.grad(value, leaves, weight)


def check(call: Call, reference: Call, leaves: list[Tensor]) -> dict[str, Any]:
    """Run ``call`` and ``reference`` (in float64 on the CPU) and compare values and all gradients."""
    got = results(call, leaves)
    exact = [t.detach().double().cpu().requires_grad_() for t in leaves]
    pairs = zip(got, results(reference, exact), strict=True)
    errors = [relative_error(one.double().cpu(), right) for one, right in pairs]
    worst, limit = max(errors), LIMITS[leaves[0].dtype]
    if not worst <= limit:  # also catches NaN
        raise AssertionError(f"relative errors of value and gradients {errors}, at most {limit:g} expected")
    return {"error": worst, "text": f"error {worst:.1e}"}


def krr_cases(device: str, quick: bool) -> Iterator[Case]:
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
                name = f"krr_mse S={s} {type(kernel).__name__} {str(dtype).removeprefix('torch.')}"
                yield Case(name, partial(call, backend="native"), partial(call, backend="torch"), sizes, dtype)


def spd(a: Tensor) -> Tensor:
    return a @ a.mT / a.shape[-1] + torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)


def other_cases(quick: bool) -> Iterator[Case]:
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
        yield Case(name, partial(call, "native"), partial(call, "torch"), sizes)


def same_bits(cases: list[Case], device: str) -> dict[str, Any]:
    """Run each case without and with dependent launches: values and gradients must have the same bits."""
    for case in cases:
        expected = results(case.native, inputs(case.sizes, case.dtype, device))
        with dependent_launch():
            got = results(case.native, inputs(case.sizes, case.dtype, device))
        if not all(torch.equal(*pair) for pair in zip(got, expected, strict=True)):
            raise AssertionError(f"{case.name}: dependent launches give other bits")
    return {"text": f"the same bits in {len(cases)} calls"}


def replay(device: str, dependent: bool) -> dict[str, Any]:
    """Check that forward and backward, captured in a CUDA graph, give the bits of the eager call.

    dependent: with dependent launches in the graph, and without in the eager call.
    """
    leaves = inputs(((300, 64), (300, 8), (60, 64), (60, 8)), torch.float32, device)

    def step() -> tuple[Tensor, ...]:
        loss = ssdd_ext.krr_mse(*leaves, kernel=LINEAR, ridge=RIDGE, on_failure="nan", backend="native")
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    from ssdd_ext.bench.measure import capture

    expected = [t.clone() for t in step()]
    with dependent_launch() if dependent else nullcontext():
        again = capture(step)
    for _ in range(3):  # one replay behind the other
        got = again()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), "a replayed graph gives other bits"
    return {"text": "same bits"}


def items(device: str, quick: bool) -> Iterator[Item]:
    if device == "cuda":
        yield "torch alone", lambda: {"text": f"{float(torch.ones(8, device=device).sum())}"}
    other, krr = list(other_cases(quick)), list(krr_cases(device, quick))
    for case in (*other, *krr):
        yield (
            case.name,
            lambda case=case: check(case.native, case.reference, inputs(case.sizes, case.dtype, device)),
        )
    if device == "cuda":
        yield "krr_mse in a CUDA graph", partial(replay, device, False)
    # Last, since it has run on no GPU.
    yield "dependent launch, krr_mse", partial(same_bits, krr, device)
    yield "dependent launch, other calls", partial(same_bits, other, device)
    if device == "cuda":
        yield "dependent launch, krr_mse in a CUDA graph", partial(replay, device, True)


def main(argv: Sequence[str] | None = None) -> int:
    a = step_parser(__doc__, "smoke").parse_args(argv)
    journal = open_journal(a.out, "smoke")
    return 0 if run_items(items(a.device, a.quick), journal) else 1


if __name__ == "__main__":
    sys.exit(main())
