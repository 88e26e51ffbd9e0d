"""Random and hostile calls: of the bindings, with arguments that no checked call gives them; and of the public API,
whose results are compared with the float64 reference.

Under the sanitizers (``make torture`` builds a core with them) an access outside of a tensor ends the process.
"""

from __future__ import annotations

import random
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import ssdd_ext
from ssdd_ext import _C as core
from ssdd_ext import RBF, Cosine, Laplace, Linear, Matern, Ridge, testing
from ssdd_ext.ops.native import to_capsule

REFUSALS = (TypeError, ValueError, RuntimeError, BufferError, OverflowError, MemoryError, IndexError)
"""What a call with impossible arguments may raise."""
BINDINGS, CALLS = 60, 20
"""Hostile calls of the bindings, and calls of the public API, per case."""
INTEGERS = (
    -1,
    0,
    1,
    2,
    3,
    7,
    64,
    1000,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64,
    3.5,
    None,
    True,
    "x",
)
NUMBERS = (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool)
SIZES = ("batch", "s", "q", "d", "c", "n", "kernel", "ridge", "plan", "chunk")
SHAPES = ("KrrShape", "FromGramShape")
NATIVE = tuple(
    [
        "gram",
        "gram_workspace",
        "gram_backward",
        "gram_backward_workspace",
        "solve",
        "solve_backward",
        "cholesky_workspace",
        "krr_forward",
        "krr_backward",
        "krr_workspace",
        "krr_evaluate",
        "krr_evaluate_workspace",
        "krr_value_and_gradient",
        "krr_value_and_gradient_workspace",
        "krr_fuses",
        "krr_record",
        "krr_replay",
        "krr_saved",
        "krr_fit",
        "krr_fit_backward",
        "krr_fit_saved",
        "krr_from_gram",
        "krr_from_gram_backward",
        "krr_from_gram_saved",
        "krr_from_gram_workspace",
        "tridiagonal",
        "tridiagonal_rotate",
        "tridiagonal_solve",
        "tridiagonal_workspace",
    ]
)


class Hostile:
    """Replaces the functions of the core by ones that change an argument with some probability."""

    def __init__(self, rng: random.Random, share: float) -> None:
        self.rng, self.share, self.mutated, self.calls = rng, share, 0, 0
        self.kept = {name: getattr(core, name) for name in (*NATIVE, *SHAPES)}

    def __enter__(self) -> Hostile:
        for name in NATIVE:
            setattr(core, name, self._wrap(self.kept[name]))
        for name in SHAPES:
            setattr(core, name, partial(self._shape, self.kept[name]))
        return self

    def __exit__(self, *_: Any) -> None:
        for name, function in self.kept.items():
            setattr(core, name, function)

    def _shape(self, made: Any, **sizes: Any) -> Any:
        for name in SIZES:
            if name in sizes and self.rng.random() < self.share / 8:
                self.mutated += 1
                near = sizes[name] + self.rng.choice((-1, 1, 2))
                sizes[name] = self.rng.choice((near, near, *INTEGERS))
        for name in ("detach", "bordered", "fused_gram", "lanes", "keeps"):
            if name in sizes and self.rng.random() < self.share / 8:
                sizes[name] = not sizes.get(name, False)
        return made(**sizes)

    def _wrap(self, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            given = list(arguments)
            while self.rng.random() < self.share and given:
                self.mutated += 1
                i = self.rng.randrange(len(given))
                given[i] = self._other(given[i])
            return function(*given)

        return call

    def _other(self, value: Any) -> Any:
        kind = type(value).__name__
        if kind == "PyCapsule" or value is None:
            return self.rng.choice((self.capsule, self.capsule, self.capsule, lambda: None, lambda: 5, lambda: value))()
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            # A number of threads that the machine does not have would only test the machine.
            other = self.rng.choice((value + 1, max(0, value - 1), *INTEGERS))
            return other if not isinstance(other, int) or value > 4 or other <= 64 else value
        if isinstance(value, list):
            return [self.rng.choice(NUMBERS) for _ in range(self.rng.choice((0, 1, 2, len(value), len(value), 40)))]
        return self.rng.choice((value, None, 7))

    def capsule(self) -> Any:
        """Return a capsule of a tensor of any shape, strides and type."""
        t = any_tensor(self.rng)
        return to_capsule(t)


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


def problem(rng: random.Random, layouts: bool = True) -> tuple[testing.Inputs, testing.Inputs, torch.dtype]:
    """Return a problem in a random dtype, and the same numbers in float64."""
    s, q, d, c = (rng.choice(n) for n in ((1, 2, 5, 17, 40, 70), (0, 1, 9, 40), (1, 3, 20, 65), (1, 2, 8, 30)))
    batch = rng.choice(((), (), (1,), (4,), (2, 3), (33,)))
    plain: Any = (Linear(), Linear(1.5, 0.5), Linear(bias=1.0), RBF(2.0), RBF(5.0))
    kernel = rng.choice((*plain, *plain, Laplace(3.0), Matern(4.0, 1.5), Cosine()))
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
    dtype = rng.choice((torch.float32, torch.float32, torch.float64))
    grads = testing.ARGUMENTS if rng.random() < 0.5 else ()
    inputs = testing.draw(row, 0, dtype, grads)
    return inputs, inputs.to(torch.float64), dtype


def compare(rng: random.Random) -> None:
    """Compare values and gradients of one public call with the formula in float64."""
    inputs, wide, dtype = problem(rng)
    backend = rng.choice(("auto", "auto", "native", "planned"))
    if backend == "native" and not isinstance(inputs.kernel, Linear | RBF):
        backend = "auto"
    options = {"kernel": inputs.kernel, "ridge": inputs.ridge, "backend": backend}
    mse = inputs.x_q.shape[-2] > 0 and rng.random() < 0.5
    if mse:
        got, expected = ssdd_ext.krr_mse(inputs.x_s, inputs.y_s, inputs.x_q, inputs.y_q, **options), testing.mse(wide)
    else:
        how = rng.choice(("krr", "krr", "fit")) if inputs.x_s.shape[:-2] == inputs.x_q.shape[:-2] else "krr"
        if how == "fit":
            got = ssdd_ext.fit(inputs.x_s, inputs.y_s, **options).predict(inputs.x_q)
        else:
            got = ssdd_ext.krr(inputs.x_s, inputs.y_s, inputs.x_q, **options)
        expected = testing.predictions(wide)
    assert got.dtype == dtype
    allowed = 300 * torch.finfo(dtype).eps * min(testing.condition(wide), 1e6)
    error = testing.relative_error(got, expected)
    assert error <= allowed, f"{options}: error {error:.2g}, allowed {allowed:.2g}"
    found, right = (testing.gradients(r, i) for r, i in ((got, inputs), (expected, wide)))
    largest = max((float(g.abs().max()) for g in right.values() if g.numel()), default=0.0)
    for name, grad in found.items():
        difference = float((grad.double() - right[name]).abs().max()) if grad.numel() else 0.0
        assert difference <= 10 * allowed * max(largest, 1e-12), (
            f"{options}: gradient to {name} off by {difference:.2g}"
        )


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
            lambda: torch.zeros(1, 1).expand(2**31 + 7, 1) if rng.random() < 0.2 else torch.zeros(2, 2),
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


def forget_plans() -> None:
    """Empty the caches of shapes: a hostile shape in one of them would spoil later calls."""
    for name in ("small", "eager", "eager_gram"):
        for cached in vars(import_module(f"ssdd_ext.ops.{name}")).values():
            if hasattr(cached, "cache_clear") and cached.__module__.startswith("ssdd_ext"):
                cached.cache_clear()


def attack(rng: random.Random) -> tuple[int, int]:
    """Call the bindings with wrong arguments, through calls whose other arguments are right."""
    inputs, _, _ = problem(rng, layouts=False)
    with Hostile(rng, 0.5) as hostile:
        try:
            forget_plans()
            options = {"kernel": inputs.kernel, "ridge": inputs.ridge, "on_failure": rng.choice(("nan", "jitter"))}
            what = rng.choice(("krr", "mse", "gram", "solve", "from gram"))
            if what == "gram":
                result = ssdd_ext.gram(inputs.x_s, inputs.x_q, kernel=inputs.kernel)
            elif what == "solve":
                a = ssdd_ext.gram(inputs.x_s)
                result = ssdd_ext.cholesky_solve(a, inputs.y_s, ridge=Ridge.absolute(1.0), on_failure="nan")
            elif what == "from gram" and inputs.x_q.shape[:-2] == inputs.x_s.shape[:-2]:
                k_ss, k_qs = ssdd_ext.gram(inputs.x_s), ssdd_ext.gram(inputs.x_q, inputs.x_s)
                result = ssdd_ext.krr_from_gram(k_ss, inputs.y_s, k_qs, ridge=Ridge.absolute(1.0), on_failure="nan")
            elif what == "mse" and inputs.x_q.shape[-2]:
                result = ssdd_ext.krr_mse(inputs.x_s, inputs.y_s, inputs.x_q, inputs.y_q, **options)
            else:
                result = ssdd_ext.krr(inputs.x_s, inputs.y_s, inputs.x_q, **options)
            if result.requires_grad:
                result.sum().backward()
        except (*REFUSALS, AssertionError):
            pass
    forget_plans()
    return hostile.calls, hostile.mutated


def prepare(place: Path) -> Any:
    return None


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    calls = mutated = 0
    for _ in range(BINDINGS):
        called, changed = attack(rng)
        calls, mutated = calls + called, mutated + changed
    for _ in range(CALLS):
        compare(rng)
        abuse(rng)
    ssdd_ext.ops.native._spare.clear()
    counts = {
        "binding calls": calls,
        "hostile arguments": mutated,
        "compared calls": CALLS,
        "wrong public calls": CALLS,
    }
    return {"counts": counts}
