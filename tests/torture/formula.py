"""Random calls of the public API beside the formula in float64, and calls with a wrong argument.

A problem's value and gradients are computed once by the formula, and several calls are compared with them: functions
that give the same numbers, on every backend that can.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

import ssdd_ext
from ssdd_ext import (
    ARD,
    NNGP,
    NTK,
    RBF,
    ArcCosine,
    Cosine,
    Laplace,
    Linear,
    Matern,
    Polynomial,
    RationalQuadratic,
    Ridge,
    testing,
)

REFUSALS = (TypeError, ValueError, RuntimeError, BufferError, OverflowError, MemoryError, IndexError)
"""What a call with impossible arguments may raise."""
PROBLEMS, CALLS = 60, 4
"""Per case: problems, each of which also gives a call with a wrong argument, and calls beside the formula of each."""
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool)


def any_tensor(rng: random.Random) -> torch.Tensor:
    shape = [rng.choice((0, 1, 2, 3, 5, 8, 17, 64)) for _ in range(rng.choice((0, 1, 2, 2, 2, 3, 3, 4)))]
    t = torch.zeros(shape, dtype=rng.choice((*DTYPES, torch.float32, torch.float32, torch.float64, torch.float64)))
    if t.dim() > 1 and rng.random() < 0.3:
        t = t.mT
    if t.dim() > 1 and rng.random() < 0.2:
        t = t[..., ::2, :]
    if t.dim() and rng.random() < 0.1:
        t = t[:1].expand(t.shape[0] or 1, *t.shape[1:]) if t.shape[0] else t
    return t


SMALL = ((1, 2, 3, 5, 9, 17), (0, 1, 1, 2, 3, 9, 9, 9), (1, 2, 3, 7, 20), (1, 2, 8)), ((), (), (1,), (3,), (2, 3))
LARGE = ((1, 2, 5, 17, 40, 70), (0, 1, 9, 40), (1, 3, 20, 65), (1, 2, 8, 30)), ((), (), (1,), (4,), (2, 3), (33,))
"""Sizes S, Q, D, C, and batches."""
PLAIN: Any = (Linear(), Linear(1.5, 0.5), Linear(bias=1.0), RBF(2.0), RBF(5.0))
ANGLES: Any = (ArcCosine(1), NNGP(1), NTK(2))
OTHERS: Any = (
    *(Laplace(3.0), Matern(4.0, 0.5), Matern(4.0, 1.5), Matern(3.0, 2.5), RationalQuadratic(3.0, 1.5), Cosine()),
    *(Polynomial(2, 0.3, 1.0), Polynomial(3, 0.1, 1.0), *ANGLES),
    *(RBF(3.0) + Linear(0.2), RBF(4.0) * Linear(0.5, 1.0), 0.7 * Matern(4.0, 2.5)),
)


def problem(rng: random.Random, layouts: bool = True) -> tuple[testing.Inputs, testing.Inputs, torch.dtype]:
    """Return a problem in a random dtype, and the same numbers in float64."""
    sizes, batches = LARGE if rng.random() < 0.04 else SMALL
    s, q, d, c = (rng.choice(n) for n in sizes)
    batch = rng.choice(batches)
    kernel = rng.choice(PLAIN if rng.random() < 0.6 else OTHERS)
    if kernel in ANGLES:
        d = max(d, 7)  # rounding changes an angle near 0 or pi by 1e-8; few directions of many features are that close
    if rng.random() < 0.05:
        kernel = ARD(RBF(2.0), 0.5 + torch.rand(d, generator=torch.Generator().manual_seed(rng.randrange(1 << 30))))
    ridge = getattr(Ridge, rng.choice(("absolute", "trace", "mean_trace")))(10 ** rng.uniform(-3, 1))
    row = testing.Problem(
        f"torture {rng.random()}",
        *(s, q, d, c),
        kernel,
        ridge,
        batch=batch,
        batch_q=rng.choice((None, batch[-1:], ())) if batch else None,
        layout=rng.choice(testing.LAYOUTS) if layouts else "contiguous",
        hyper=rng.choice(("numbers", "numbers", "scalar", "batch")) if isinstance(kernel, Linear | RBF) else "numbers",
    )
    dtype = rng.choice((torch.float32, torch.float64))
    grads = testing.ARGUMENTS if rng.random() < 0.5 else ()
    inputs = testing.draw(row, 0, dtype, grads)
    return inputs, inputs.to(torch.float64), dtype


def from_gram(inputs: testing.Inputs, options: dict[str, Any], *y_q: torch.Tensor) -> torch.Tensor:
    """Compute the same from Gram matrices that the public API makes."""
    made = {"kernel": options["kernel"], "backend": options["backend"]}
    k_ss, k_qs = ssdd_ext.gram(inputs.x_s, **made), ssdd_ext.gram(inputs.x_q, inputs.x_s, **made)
    call = ssdd_ext.krr_mse_from_gram if y_q else ssdd_ext.krr_from_gram
    result: torch.Tensor = call(k_ss, inputs.y_s, k_qs, *y_q, ridge=options["ridge"], backend=options["backend"])
    return result


def public_call(how: str, i: testing.Inputs, options: dict[str, Any]) -> torch.Tensor:
    """Make one call of the public API; all of them give predictions, or all of them the loss."""
    if how == "mse":
        result: torch.Tensor = ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, **options)
    elif how == "mse from gram":
        result = from_gram(i, options, i.y_q)
    elif how == "krr":
        result = ssdd_ext.krr(i.x_s, i.y_s, i.x_q, **options)
    elif how == "fit":
        result = ssdd_ext.fit(i.x_s, i.y_s, **options).predict(i.x_q)
    else:
        result = from_gram(i, options)
    return result


class Expected:
    """The formula's result in float64, its gradients, and the errors that the condition of the problem allows."""

    def __init__(self, wide: testing.Inputs, of_loss: bool, dtype: torch.dtype) -> None:
        a = testing.regularised(testing.kernel_matrix(wide.kernel, wide.x_s, wide.x_s), wide.ridge)
        k_qs = testing.kernel_matrix(wide.kernel, wide.x_q, wide.x_s)
        alpha = testing.solve(a, wide.y_s, "lu")
        self.result = k_qs @ alpha
        # What rounding is relative to: a sum of these terms, which may cancel, as may those of a kernel's value.
        scale = (self.most(wide) @ alpha.abs()).detach()
        if of_loss:
            residual = self.result - wide.y_q
            self.result = residual.square().mean((-2, -1))
            scale = (2 * residual.abs() * (scale + wide.y_q.abs())).mean((-2, -1)).detach()
        self.gradients = testing.gradients(self.result, wide)
        largest = max((float(g.abs().max()) for g in self.gradients.values() if g.numel()), default=0.0)
        condition = float(torch.linalg.cond(a.detach()).max()) if a.numel() else 1.0
        # Four times the largest errors in thousands of problems.
        allowed = 100 * torch.finfo(dtype).eps * min(condition, 1e6)
        terms = max(float(scale.max()) if scale.numel() else 0.0, 1e-12)
        self.error = allowed * terms
        self.gradient_error = 4 * allowed * max(largest, terms)

    @staticmethod
    def most(wide: testing.Inputs) -> torch.Tensor:
        """Return the most that a kernel of these lengths can be, by Cauchy and Schwarz: [..., Q, S]."""
        lengths = (testing.kernel_matrix(wide.kernel, x, x).diagonal(dim1=-2, dim2=-1) for x in (wide.x_q, wide.x_s))
        of_q, of_s = (t.detach().abs().sqrt() for t in lengths)
        return of_q[..., :, None] * of_s[..., None, :]

    def check(self, label: str, got: torch.Tensor, inputs: testing.Inputs) -> None:
        """Compare a result of the public API and its gradients."""
        found = testing.gradients(got, inputs)
        assert got.shape == self.result.shape, f"{label}: {got.shape}"
        assert found.keys() == self.gradients.keys(), f"{label}: gradients to {[*found]}"
        pairs = {"result": (got.detach(), self.result.detach(), self.error)}
        pairs |= {f"gradient to {n}": (g, self.gradients[n], self.gradient_error) for n, g in found.items()}
        for name, (one, other, allowed) in pairs.items():
            error = float((one.double() - other).abs().max()) if one.numel() else 0.0
            assert error <= allowed, f"{label}: {name} off by {error:.2g}, allowed {allowed:.2g}"


def compare(rng: random.Random) -> int:
    """Compare values and gradients of some public calls with the formula in float64; return how many."""
    inputs, wide, dtype = problem(rng)
    of_loss = inputs.x_q.shape[-2] > 0 and rng.random() < 0.5
    if of_loss:
        ways = ["mse", "mse", "mse from gram"]
    else:
        ways = ["krr", "krr", "from gram", *["fit"] * (inputs.x_s.shape[:-2] == inputs.x_q.shape[:-2])]
    expected = Expected(wide, of_loss, dtype)
    native = ("native",) if isinstance(inputs.kernel, Linear | RBF) else ()
    for _ in range(CALLS):
        how, backend = rng.choice(ways), rng.choice(("auto", "auto", "auto", *native, "planned", "torch"))
        options = {"kernel": inputs.kernel, "ridge": inputs.ridge, "backend": backend}
        got = public_call(how, inputs, options)
        shapes = [tuple(getattr(inputs, name).shape) for name in testing.ARGUMENTS]
        label = f"{how}, {options}, {shapes}, {dtype}"
        assert got.dtype == dtype, f"{label}: {got.dtype}"
        expected.check(label, got, inputs)
    return CALLS


def abuse(rng: random.Random) -> None:
    """Give the public API an argument that does not fit. It refuses by an error that names something, or answers."""
    inputs, _, _ = problem(rng)
    arguments: dict[str, Any] = {name: getattr(inputs, name) for name in ("x_s", "y_s", "x_q")}
    name = rng.choice(list(arguments))
    t = arguments[name]
    arguments[name] = rng.choice(
        (
            lambda: any_tensor(rng),
            lambda: t.detach().to(rng.choice(DTYPES)),
            lambda: t.detach().numpy(),
            lambda: None,
            lambda: t.detach() * float("nan"),
            lambda: t.detach() * 1e30,
            lambda: t.detach()[..., :0, :],
            lambda: t.detach().to_sparse() if t.dim() == 2 else None,
            lambda: t.detach().to("meta"),
            lambda: torch.empty(0),
            # More rows than 32 bits count, and a column too many, so that nobody computes with them.
            lambda: torch.zeros(1, 1).expand(2**31 + 7, t.shape[-1] + 1),
        )
    )()
    try:
        ssdd_ext.krr(
            **arguments,
            kernel=rng.choice((inputs.kernel, inputs.kernel, None, "rbf")),
            ridge=rng.choice((inputs.ridge, inputs.ridge, 1e-3)),
            on_failure=rng.choice(("raise", "nan", "jitter", "other")),
            backend=rng.choice(("auto", "native", "planned", "torch")),
        )
    except REFUSALS as error:
        assert str(error).strip(), f"an empty {type(error).__name__}"
        assert not isinstance(error, MemoryError)


def prepare(place: Path) -> Any:
    return None


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    compared = 0
    for _ in range(PROBLEMS):
        compared += compare(rng)
        abuse(rng)
    return {"counts": {"compared calls": compared, "problems": PROBLEMS, "wrong public calls": PROBLEMS}}
