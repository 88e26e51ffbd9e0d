"""Every way into the backend beside the fastest order of the products in PyTorch, each with the ratio it should reach.

A row is one call: a batch of small problems, given Gram matrices, many ridges, a fit, a factorisation; and the cost of
a call itself, beside an op that does nothing, with the same registration and as many tensors. All alternatives take
turns. A ratio is theirs over ours: of medians, and of minima, which another load on the machine disturbs less. With
one thread the clock is the processor time of that thread. ``--isa avx2`` limits both sides to that instruction set, and
prints the rate of the products that each side has with it.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import instruction_sets

if __name__ == "__main__":
    instruction_sets.limit(sys.argv)

import torch
from bench_batched import FACTORED, FROM_GRAM, ORDERS, REGRESSED, V, error, factor_rows, from_gram_rows, regression_rows
from timing import apply_arguments, parser, write
from torch import Tensor

import ssdd_ext
from ssdd_ext import Ridge
from ssdd_ext.bench import ALTERNATIVES, Problem, machine, measure

Call = Callable[[], Any]
SAMPLE_SECONDS = 2e-4
REPEATS = 400
ONE_FIFTH_MORE = 1 / 1.2  # "at most 1.2 times an empty op", as a ratio


class Road(NamedTuple):
    """What is called, its sizes, the ratio that it should reach at least and at best, and the calls."""

    what: str
    sizes: tuple[int, ...]
    at_least: float | None
    aim: float | None
    ours: Call
    others: dict[str, Call]
    error: float | None = None


def in_turn(ours: Call, others: dict[str, Call], seconds: float) -> dict[str, Any]:
    """Return medians and minima of all, and the ratios of the fastest alternative to ours."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    calls, times = {"ours": ours, **others}, {name: list[float]() for name in ("ours", *others)}
    inner = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        inner[name] = max(1, int(SAMPLE_SECONDS / max(clock() - start, 1e-7)))
    gc.collect()
    gc.freeze()
    end = time.perf_counter() + seconds
    while len(times["ours"]) < 3 or (time.perf_counter() < end and len(times["ours"]) < REPEATS):
        for name, call in calls.items():
            call()
            start = clock()
            for _ in range(inner[name]):
                call()
            times[name].append((clock() - start) / inner[name])
    gc.unfreeze()
    median = {name: statistics.median(t) for name, t in times.items()}
    least = {name: min(t) for name, t in times.items()}
    best = min(others, key=lambda name: least[name])
    middle = min(median[name] for name in others)
    return {
        "best": best,
        "ours": {"median": median["ours"], "least": least["ours"]},
        "theirs": {"median": middle, "least": least[best]},
        "ratio": middle / median["ours"],
        "ratio_of_minima": least[best] / least["ours"],
        "repeats": len(times["ours"]),
        "clock": "processor" if clock is time.thread_time else "wall",
    }


# --- regressions ------------------------------------------------------------------------------------

# at least and aim: forward, forward + backward, fit and predict
BATCHES: dict[tuple[int, ...], tuple[tuple[float | None, float | None], ...]] = {
    (64, 5, 512, 75, 5): ((2, 2.5), (3, 4), (1.2, 2)),
    (256, 32, 64, 32, 10): ((3, 5), (4, 6), (None, None)),
    (1000, 16, 32, 16, 4): ((4, 6), (5, 8), (None, None)),
    (16, 25, 2560, 75, 5): ((None, None), (None, None), (1.2, 2)),
}


def batches(scale: int) -> Iterator[Road]:
    for sizes in REGRESSED:
        rows = regression_rows(*(max(2, size // scale) for size in sizes))
        for (what, (ours, others, off)), goal in zip(rows.items(), BATCHES[sizes], strict=True):
            yield Road(what, sizes, *goal, ours, others, off)


def small(scale: int) -> Iterator[Road]:
    s, q, d, c = (max(2, size // scale) for size in (10, 64, 64, 5))
    x_s, y_s, x_q, y_q = torch.randn(s, d), torch.randn(s, c), torch.randn(q, d), torch.randn(q, c)
    ridge = Ridge.trace(V)
    exact = ORDERS["solve"](x_s.double(), y_s.double(), x_q.double())
    off = error(ssdd_ext.krr(x_s, y_s, x_q, ridge=ridge), exact)
    predictions: dict[str, Call] = {n: partial(order, x_s, y_s, x_q) for n, order in ORDERS.items()}
    losses: dict[str, Call] = {n: lambda p=p: (p() - y_q).square().mean() for n, p in predictions.items()}
    krr, mse = partial(ssdd_ext.krr, x_s, y_s, x_q), partial(ssdd_ext.krr_mse, x_s, y_s, x_q, y_q)
    yield Road("krr, one problem", (s, q, d, c), 1.5, 3, partial(krr, ridge=ridge), predictions, off)
    yield Road("krr_mse, one problem", (s, q, d, c), 1.5, 3, partial(mse, ridge=ridge), losses, off)


def grams(scale: int) -> Iterator[Road]:
    for sizes in FROM_GRAM:
        for what, (ours, others, off) in from_gram_rows(*(max(2, size // scale) for size in sizes)).items():
            yield Road(what, sizes, 1.3, 2, ours, others, off)


def problems(scale: int) -> Iterator[Road]:
    """Yield KRR-ST's formulation (LU, a ones column) and planned PyTorch with an RBF kernel."""
    table = (
        (Problem(200, 256, 1024, 128, bias=1.0), "PyTorch, usual", 2, 2.5),
        (Problem(200, 512, 256, 10, kernel="rbf"), "PyTorch, planned", 1.5, 2),
        (Problem(1000, 1024, 2048, 10, kernel="rbf"), "PyTorch, planned", 1.5, 2),
    )
    for full, other, at_least, aim in table:
        p = Problem(full.s // scale, full.q // scale, full.d // scale, full.c, bias=full.bias, kernel=full.kernel)
        t = p.inputs()
        ours, theirs = (partial(measure.step, ALTERNATIVES[name], p, t) for name in ("ssdd_ext", other))
        off = max(measure.errors(ALTERNATIVES["ssdd_ext"], p, t, measure.truth(p, t)).values())
        what = f"krr_mse, forward + backward, {full.kernel}"
        yield Road(what, (full.s, full.q, full.d, full.c), at_least, aim, ours, {other: theirs}, off)


def ridges(scale: int) -> Iterator[Road]:
    s, d, c, q, r = (size // scale for size in (400, 1000, 200, 100, 100))
    x, y, z = torch.randn(s, d), torch.randn(s, c), torch.randn(q, d)
    many, each = torch.logspace(0, 5, r), torch.logspace(0, 5, c)

    def decomposed(x: Tensor, y: Tensor, z: Tensor, shifts: Tensor) -> Tensor:
        w, u = torch.linalg.eigh(x @ x.mT)
        return (z @ x.mT @ u) @ ((u.mT @ y) / (w[:, None] + shifts))

    wide = x.double(), y.double(), z.double()
    table: tuple[tuple[str, Tensor, Call], ...] = (
        (f"krr_path, {r} ridges", many[:, None, None], lambda: _path(x, y, z, Ridge.absolute(many))),
        (f"krr_path, {c} ridges per target", each, lambda: _path(x, y, z, Ridge.per_target(each[None]))[0]),
        (f"krr, {c} ridges per target", each, lambda: ssdd_ext.krr(x, y, z, ridge=Ridge.per_target(each))),
    )
    for what, shifts, ours in table:
        other = {"one eigendecomposition": partial(decomposed, x, y, z, shifts)}
        yield Road(what, (s, d, c, q), 1.2, 2, ours, other, error(ours(), decomposed(*wide, shifts.double())))


def gram_gradients(scale: int) -> Iterator[Road]:
    """Yield one Gram matrix with its gradient, beside planned PyTorch, for a kernel of each kind."""
    s, q, d = (size // scale for size in (300, 400, 64))
    x, z, bar = torch.randn(s, d, requires_grad=True), torch.randn(q, d, requires_grad=True), torch.randn(s, q)
    wide = [t.detach().double().requires_grad_() for t in (x, z)]
    for kernel in (ssdd_ext.Matern(5.0, 2.5), ssdd_ext.RationalQuadratic(5.0, 1.3), ssdd_ext.NTK(3, 1.4, 0.1)):

        def run(backend: str, points: Sequence[Tensor] = (x, z), kernel: Any = kernel) -> Any:
            k = ssdd_ext.gram(*points, kernel=kernel, backend=backend)
            return torch.autograd.grad(k, points, bar.to(points[0].dtype))

        off = max(error(got, expected) for got, expected in zip(run("auto"), run("torch", wide), strict=True))
        others: dict[str, Call] = {"PyTorch, planned": partial(run, "planned")}
        yield Road(f"gram, forward + backward, {kernel.name}", (s, q, d), None, None, partial(run, "auto"), others, off)


def _path(x: Tensor, y: Tensor, z: Tensor, ridges: Ridge) -> Tensor:
    return ssdd_ext.krr_path(x, y, ridges=ridges).predict(z)


def factors(scale: int) -> Iterator[Road]:
    for sizes in FACTORED:
        for what, (ours, others, off) in factor_rows(*(max(2, size // scale) for size in sizes)).items():
            yield Road(what, sizes, 6, 8, ours, others, off)


# --- the cost of a call -----------------------------------------------------------------------------

library = torch.library.Library("ssdd_bench", "DEF")
OPTIONS = ([1.0, 0.0, V], "linear", "trace", True, "raise", [True, False, False, False])


def empty_op(count: int, outputs: int) -> Callable[..., Any]:
    """Register an op with as many tensors as ours, whose passes only allocate and return; return it."""
    name = f"empty_{count}_{outputs}"
    if hasattr(torch.ops.ssdd_bench, name):
        return getattr(torch.ops.ssdd_bench, name).default
    tensors, results = ", ".join(f"Tensor t{i}" for i in range(count)), ", ".join(["Tensor"] * outputs)
    options = "float[] values, str kernel, str ridge, bool detach, str on_failure, bool[] needs"
    library.define(f"{name}({tensors}, {options}) -> ({results})")

    def forward(first: Tensor, *_: Any) -> Any:
        made = tuple(first.new_empty(2) for _ in range(outputs))
        return made if outputs > 1 else made[0]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        every = output if outputs > 1 else (output,)
        ctx.save_for_backward(*inputs[:count], *every)
        ctx.mark_non_differentiable(*every[1:])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        saved = ctx.saved_tensors[:count]
        found = tuple(t if needed else None for t, needed in zip(saved, ctx.needs_input_grad, strict=False))
        return (*found, *(None,) * len(OPTIONS))

    library.impl(name, forward, "CPU")
    torch.library.register_autograd(f"ssdd_bench::{name}", backward, setup_context=setup, lib=library)
    return getattr(torch.ops.ssdd_bench, name).default


def calls(scale: int) -> Iterator[Road]:
    """Yield every public call on a problem of almost no work, without and with gradients to its first tensor."""
    s, q, d, c = 3, 3, 3, 2
    x_s, y_s, x_q, y_q = torch.randn(s, d), torch.randn(s, c), torch.randn(q, d), torch.randn(q, c)
    k_ss, k_qs, ridge = x_s @ x_s.mT + torch.eye(s), x_q @ x_s.mT, Ridge.trace(V)
    fitted = ssdd_ext.fit(x_s, y_s, ridge=ridge)
    # The call, its tensors, and how many tensors its op returns.
    table: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int]] = {
        "krr": (partial(ssdd_ext.krr, ridge=ridge), (x_s, y_s, x_q), 8),
        "krr_mse": (partial(ssdd_ext.krr_mse, ridge=ridge), (x_s, y_s, x_q, y_q), 8),
        "krr_from_gram": (partial(ssdd_ext.krr_from_gram, ridge=ridge), (k_ss, y_s, k_qs), 5),
        "krr_mse_from_gram": (partial(ssdd_ext.krr_mse_from_gram, ridge=ridge), (k_ss, y_s, k_qs, y_q), 5),
        "fit": (lambda *t: ssdd_ext.fit(*t, ridge=ridge).alpha, (x_s, y_s), 5),
        "Fit.predict": (fitted.predict, (x_q,), 1),
    }
    for follows in (False, True):
        for name, (call, given, outputs) in table.items():
            op = empty_op(len(given), outputs)
            leaf = given[0].clone().requires_grad_(follows)
            rest = given[1:]

            def nothing(op: Any = op, leaf: Tensor = leaf, rest: Any = rest, outputs: int = outputs) -> Any:
                made = op(leaf, *rest, *OPTIONS)
                return made[0] if outputs > 1 else made

            ours, empty = partial(call, leaf, *rest), nothing
            what = f"the call of {name}, {'with' if follows else 'without'} gradients"
            pair = (ours, empty) if not follows else (partial(_both, leaf, ours), partial(_both, leaf, empty))
            yield Road(what, (s, q, d, c), ONE_FIFTH_MORE, 1, pair[0], {"an empty op": pair[1]})


def _both(leaf: Tensor, call: Call) -> None:
    leaf.grad = None
    call().sum().backward()


ROADS = (batches, small, grams, problems, gram_gradients, ridges, factors, calls)


def verdict(row: dict[str, Any]) -> str:
    if row["at_least"] is None:
        return ""
    ratio = row["ratio_of_minima"]
    return "aim" if ratio >= row["aim"] else "ok" if ratio >= row["at_least"] else "BELOW"


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    words = parser(__doc__, 1.2)
    words.add_argument("--isa", choices=tuple(instruction_sets.LIMITS), help="limit both sides to this instruction set")
    a = words.parse_args(argv)
    a.instruction_set = a.isa or a.instruction_set
    apply_arguments(a)
    torch.manual_seed(0)
    products = instruction_sets.rates(a.isa)
    print(machine.instruction_sets(), f"{a.threads} threads,", products)
    rows: list[dict[str, Any]] = []
    for make in ROADS:
        for road in make(8 if a.quick else 1):
            row = road._asdict() | in_turn(road.ours, road.others, a.seconds)
            del row["others"]
            rows.append(row | machine.describe("cpu") | {"products": products})
            print(
                f"{road.what:52}{road.sizes!s:24}{row['ratio']:6.2f} {row['ratio_of_minima']:6.2f}  "
                f"{verdict(row):6}{row['best']}",
                flush=True,
            )
    write(a, "roads" if a.threads == 1 else f"roads{a.threads}", rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
