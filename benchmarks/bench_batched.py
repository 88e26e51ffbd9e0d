"""Batches of small problems beside the fastest order of products in PyTorch: cholesky, krr, krr_mse, fit and predict.

The fastest of torch.linalg.solve, Cholesky and Woodbury, each with K_qs formed or W = X_s^T alpha, is the alternative.
All are timed in turn in one process, each after one untimed call of its own; a ratio is theirs over ours, of medians
and of minima. ``spread`` is the quartile distance over the median, ours and theirs: how noisy the machine was.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import arguments, write
from torch import Tensor

import ssdd_ext
from ssdd_ext.bench import machine

V = 0.05
FACTORED = ((256, 32), (64, 64), (1024, 16), (64, 128), (37, 100))
REGRESSED = ((64, 5, 512, 75, 5), (256, 32, 64, 32, 10), (1000, 16, 32, 16, 4), (16, 25, 2560, 75, 5))
FROM_GRAM = ((100, 5000, 10), (200, 5000, 10), (50, 10000, 10))
Call = Callable[[], Any]


def shifted(k: Tensor, trace: Tensor) -> Tensor:
    return k + V * trace[..., None, None] * torch.eye(k.shape[-1])


def dual(x_s: Tensor, y_s: Tensor, cholesky: bool) -> Tensor:
    k = x_s @ x_s.mT
    a = shifted(k, k.diagonal(dim1=-2, dim2=-1).sum(-1))
    return torch.cholesky_solve(y_s, torch.linalg.cholesky(a)) if cholesky else torch.linalg.solve(a, y_s)


def woodbury(x_s: Tensor, y_s: Tensor, x_q: Tensor) -> Tensor:
    h = shifted(x_s.mT @ x_s, x_s.square().sum((-2, -1)))
    return x_q @ torch.cholesky_solve(x_s.mT @ y_s, torch.linalg.cholesky(h))


ORDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "solve": lambda s, y, q: (q @ s.mT) @ dual(s, y, False),
    "Cholesky": lambda s, y, q: (q @ s.mT) @ dual(s, y, True),
    "solve, W": lambda s, y, q: q @ (s.mT @ dual(s, y, False)),
    "Cholesky, W": lambda s, y, q: q @ (s.mT @ dual(s, y, True)),
    "Woodbury": woodbury,
}


def in_turn(ours: Call, others: dict[str, Call], seconds: float, repeats: int) -> dict[str, Any]:
    """Medians and minima of all, and the ratios to the fastest alternative."""
    calls = {"ours": ours, **others}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(times["ours"]) < 2 or (time.perf_counter() < end and len(times["ours"]) < repeats):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(t) for name, t in times.items()}
    least = {name: min(t) for name, t in times.items()}
    best = min(others, key=lambda name: median[name])
    fastest = min(least[name] for name in others)

    def spread(name: str) -> float:
        low, middle, high = statistics.quantiles(times[name], n=4)
        return (high - low) / middle

    return {
        "best": best,
        "ours": {"median": median["ours"], "least": least["ours"], "spread": spread("ours")},
        "theirs": {"median": median[best], "least": fastest, "spread": spread(best)},
        "ratio": median[best] / median["ours"],
        "ratio_of_minima": fastest / least["ours"],
    }


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def factor_rows(batch: int, n: int) -> dict[str, tuple[Call, dict[str, Call], float]]:
    x = torch.randn(batch, n, n + 5)
    a, y = x @ x.mT / (n + 5) + 0.1 * torch.eye(n), torch.randn(batch, n, 10)
    exact = torch.linalg.cholesky(a.double())
    return {
        "cholesky": (
            lambda: ssdd_ext.cholesky(a),
            {"torch": lambda: torch.linalg.cholesky(a)},
            error(ssdd_ext.cholesky(a), exact),
        ),
        "cholesky_solve": (
            lambda: ssdd_ext.cholesky_solve(a, y),
            {"torch": lambda: torch.cholesky_solve(y, torch.linalg.cholesky(a))},
            error(ssdd_ext.cholesky_solve(a, y), torch.cholesky_solve(y.double(), exact)),
        ),
    }


def regression_rows(b: int, s: int, d: int, q: int, c: int) -> dict[str, tuple[Call, dict[str, Call], float]]:
    x_s, y_s, x_q, y_q = torch.randn(b, s, d), torch.randn(b, s, c), torch.randn(b, q, d), torch.randn(b, q, c)
    ridge = ssdd_ext.Ridge.trace(V)
    orders = {n: f for n, f in ORDERS.items() if n != "Woodbury" or d <= 4 * s}
    leaf = x_s.clone().requires_grad_()

    def both(loss: Callable[[], Tensor]) -> Call:
        def run() -> None:
            leaf.grad = None
            loss().sum().backward()

        return run

    expected = ORDERS["Cholesky"](x_s.double(), y_s.double(), x_q.double())
    plain: dict[str, Call] = {n: lambda f=f: f(x_s, y_s, x_q) for n, f in orders.items()}
    passes = {n: both(lambda f=f: (f(leaf, y_s, x_q) - y_q).square().mean((-2, -1))) for n, f in orders.items()}
    off = error(ssdd_ext.krr(x_s, y_s, x_q, ridge=ridge), expected)
    fitted = ssdd_ext.fit(x_s, y_s, ridge=ridge).predict(x_q)
    return {
        "krr": (lambda: ssdd_ext.krr(x_s, y_s, x_q, ridge=ridge), plain, off),
        "krr_mse, forward + backward": (
            both(lambda: ssdd_ext.krr_mse(leaf, y_s, x_q, y_q, ridge=ridge)),
            passes,
            off,
        ),
        "fit, predict": (
            lambda: ssdd_ext.fit(x_s, y_s, ridge=ridge).predict(x_q),
            plain,
            error(fitted, expected),
        ),
    }


def from_gram_rows(s: int, q: int, c: int) -> dict[str, tuple[Call, dict[str, Call], float]]:
    x, z, y_s, y_q = torch.randn(s, 300), torch.randn(q, 300), torch.randn(s, c), torch.randn(q, c)
    k_ss, k_qs = (x @ x.mT).requires_grad_(), (z @ x.mT).requires_grad_()
    ridge = ssdd_ext.Ridge.trace(V)

    def alpha(cholesky: bool) -> Tensor:
        a = shifted(k_ss, k_ss.diagonal().sum())
        return torch.cholesky_solve(y_s, torch.linalg.cholesky(a)) if cholesky else torch.linalg.solve(a, y_s)

    def both(loss: Callable[[], Tensor]) -> Call:
        def run() -> None:
            k_ss.grad = k_qs.grad = None
            loss().backward()

        return run

    others = {
        name: both(lambda by=by: (k_qs @ alpha(by) - y_q).square().mean())
        for name, by in (("solve", False), ("Cholesky", True))
    }
    expected = ((k_qs @ alpha(True)).double() - y_q).square().mean()
    loss = ssdd_ext.krr_mse_from_gram(k_ss, y_s, k_qs, y_q, ridge=ridge)
    ours = both(lambda: ssdd_ext.krr_mse_from_gram(k_ss, y_s, k_qs, y_q, ridge=ridge))
    return {"krr_mse_from_gram, forward + backward": (ours, others, error(loss.detach(), expected.detach()))}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    a = arguments(__doc__, 1.0, argv)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    scale = 8 if a.quick else 1
    tables: tuple[tuple[Callable[..., Any], tuple[tuple[int, ...], ...]], ...] = (
        (factor_rows, FACTORED),
        (regression_rows, REGRESSED),
        (from_gram_rows, FROM_GRAM),
    )
    for make, shapes in tables:
        for shape in shapes[:1] if a.quick else shapes:
            sizes = tuple(max(2, size // scale) for size in shape)
            for what, (ours, others, off) in make(*sizes).items():
                row = {"what": what, "sizes": sizes, "error": off, **in_turn(ours, others, a.seconds, 200)}
                rows.append(row | machine.describe("cpu"))
                print(
                    f"{what:40}{sizes!s:26}{row['ratio']:6.2f} {row['ratio_of_minima']:6.2f}  {row['best']}", flush=True
                )
    write(a, "batched", rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
