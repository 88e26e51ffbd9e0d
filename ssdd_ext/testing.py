"""The problem table: one list of shapes, kernels, ridges, layouts and conditionings for tests and benchmarks.

A row is data (:class:`Problem`). ``draw(row, index)`` makes new inputs from it, always the same for the same index.
``predictions`` implements the formula a second time, on explicit matrices and independently of ``reference.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernels import (
    ARD,
    NNGP,
    NTK,
    RBF,
    ArcCosine,
    Cosine,
    Kernel,
    Laplace,
    Linear,
    Matern,
    Polynomial,
    Product,
    RationalQuadratic,
    Scaled,
    Sum,
)
from .ridge import Ridge

ARGUMENTS = ("x_s", "y_s", "x_q", "y_q")
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")


@dataclass(frozen=True)
class Problem:
    """One row: the sizes S, Q, D, C, and what is unusual about it."""

    name: str
    s: int
    q: int
    d: int
    c: int
    kernel: Kernel = Linear()
    ridge: Ridge = Ridge.trace(1e-6)
    batch: tuple[int, ...] = ()
    """Batch dimensions of x_s, and of the other inputs unless they have their own."""
    batch_y_s: tuple[int, ...] | None = None
    batch_q: tuple[int, ...] | None = None
    layout: str = "contiguous"
    """Memory layout of the four inputs, one of LAYOUTS ("expanded": stride 0 over the batch)."""
    hyper: str = "numbers"
    """"numbers", or tensors with gradient: "scalar" (0-dim), "batch", "broadcast" (parts of the batch shape)."""
    decay: float = 0.0
    """Features decrease by ten to this power from the first to the last; larger is worse conditioned."""

    @property
    def full_batch(self) -> tuple[int, ...]:
        shapes = [b for b in (self.batch, self.batch_y_s, self.batch_q) if b is not None]
        return tuple(torch.broadcast_shapes(*shapes))


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call. Tensors that require a gradient are leaves."""

    x_s: Tensor
    y_s: Tensor
    x_q: Tensor
    y_q: Tensor
    kernel: Kernel
    ridge: Ridge

    def leaves(self) -> dict[str, Tensor]:
        """Return the tensors that require a gradient, by name: hyper-parameters under their own names, and "ridge"."""
        named = {name: getattr(self, name) for name in ARGUMENTS} | dict(self.kernel.named_parameters())
        named["ridge"] = self.ridge.value
        return {name: t for name, t in named.items() if isinstance(t, Tensor) and t.requires_grad}

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the same problem with every tensor, hyper-parameters included, replaced by ``function`` of it."""

        def apply(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else value

        return Inputs(
            **{name: apply(getattr(self, name)) for name in ARGUMENTS},
            kernel=self.kernel.map(apply),
            ridge=dataclasses.replace(self.ridge, value=apply(self.ridge.value)),
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        """Return new leaves with the same numbers in another dtype."""
        return self.map(lambda t: t.detach().to(dtype, copy=True).requires_grad_(t.requires_grad))


# --- drawing ----------------------------------------------------------------------------------------


def draw(
    row: Problem, index: int = 0, dtype: torch.dtype = torch.float64, requires_grad: tuple[str, ...] = ARGUMENTS
) -> Inputs:
    """Draw Gaussian features and targets in float64, from a seed made of (row.name, index)."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{row.name}/{index}".encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def near(value: float | Tensor, shape: tuple[int, ...]) -> Tensor:
        own = value.shape if isinstance(value, Tensor) else ()
        spread = 0.5 + torch.rand((*shape, *own), generator=generator, dtype=torch.float64)
        return (value * spread).to(dtype).requires_grad_()

    falling = 10.0 ** -torch.linspace(0, row.decay, row.d, dtype=torch.float64)
    batch_q = row.batch if row.batch_q is None else row.batch_q
    batch_y = row.batch if row.batch_y_s is None else row.batch_y_s
    values = {
        "x_s": normal(*row.batch, row.s, row.d) * falling,
        "y_s": normal(*batch_y, row.s, row.c),
        "x_q": normal(*batch_q, row.q, row.d) * falling,
        "y_q": normal(*batch_q, row.q, row.c),
    }
    tensors = {n: lay_out(t.to(dtype), row.layout).requires_grad_(n in requires_grad) for n, t in values.items()}
    kernel, ridge = row.kernel, row.ridge
    if row.hyper != "numbers":
        full = row.full_batch
        shapes: dict[str, list[tuple[int, ...]]] = {"scalar": [()], "batch": [full]}
        parts = shapes.get(row.hyper, [full[-1:], (*full[:-1], 1)])
        drawn = iter([near(value, parts[i % len(parts)]) for i, value in enumerate(kernel.parameters)])
        kernel = kernel.map(lambda _: next(drawn))
        ridge = dataclasses.replace(ridge, value=near(float(ridge.value), parts[0]))
    return Inputs(**tensors, kernel=kernel, ridge=ridge)


def lay_out(t: Tensor, layout: str) -> Tensor:
    """Return the numbers of ``t`` ("expanded": those of its first problem) in another memory layout."""
    if layout == "transposed":
        return t.mT.contiguous().mT
    if layout == "strided":
        # Every second row and third column of a larger array, off its start.
        large = t.new_full((*t.shape[:-2], 2 * t.shape[-2] + 1, 3 * t.shape[-1] + 2), float("nan"))
        view = large[..., 1 : 2 * t.shape[-2] + 1 : 2, 2 : 3 * t.shape[-1] + 2 : 3]
        return view.copy_(t).detach()
    if layout == "expanded" and t.dim() > 2:
        return t[(slice(0, 1),) * (t.dim() - 2)].contiguous().expand(t.shape)
    return t


# --- the formula, once more -------------------------------------------------------------------------


def _linear(x: Tensor, z: Tensor, scale: Any, bias: Any) -> Tensor:
    return scale * torch.einsum("...sd,...qd->...sq", x, z) + bias


def _rbf(x: Tensor, z: Tensor, lengthscale: Any) -> Tensor:
    return torch.exp(-(x.unsqueeze(-2) - z.unsqueeze(-3)).pow(2).sum(-1) / (2 * lengthscale**2))


def _distance(x: Tensor, z: Tensor, norm: int = 2) -> Tensor:
    """Return the distances [..., S, Q]. The gradient is 0 if two points coincide (torch.linalg.vector_norm's)."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - z.unsqueeze(-3), ord=norm, dim=-1)


def _laplace(x: Tensor, z: Tensor, lengthscale: Any, norm: int) -> Tensor:
    return torch.exp(-_distance(x, z, norm) / lengthscale)


def _matern(x: Tensor, z: Tensor, lengthscale: Any, nu: float) -> Tensor:
    t = math.sqrt(2 * nu) * _distance(x, z) / lengthscale
    return {0.5: 1.0, 1.5: 1 + t, 2.5: 1 + t + t**2 / 3}[nu] * torch.exp(-t)


def _rational_quadratic(x: Tensor, z: Tensor, lengthscale: Any, alpha: Any) -> Tensor:
    return (1 + _distance(x, z) ** 2 / (2 * alpha * lengthscale**2)) ** -alpha


def _polynomial(x: Tensor, z: Tensor, degree: int, scale: Any, bias: Any) -> Tensor:
    return torch.pow(_linear(x, z, scale, bias), degree)


def _cosine(x: Tensor, z: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(x.unsqueeze(-2), z.unsqueeze(-3), dim=-1)


def _angle(k: Tensor, k_x: Tensor, k_z: Tensor) -> Tensor:
    """Return the angles of vectors with these inner products; 0 or pi, without gradient, if rounding decides."""
    product = k_x.unsqueeze(-1) * k_z.unsqueeze(-2)
    square = product - k**2
    on_a_line = square <= 1e-14 * product
    straight = math.pi * (k < 0).to(k)
    return torch.where(on_a_line, straight, torch.atan2(torch.where(on_a_line, 1.0, square).sqrt(), k))


def _arc_cosine(x: Tensor, z: Tensor, order: int) -> Tensor:
    k_x, k_z = x.pow(2).sum(-1), z.pow(2).sum(-1)
    angle = _angle(torch.einsum("...sd,...qd->...sq", x, z), k_x, k_z)
    if order == 0:
        return (math.pi - angle) / math.pi
    lengths = k_x.sqrt().unsqueeze(-1) * k_z.sqrt().unsqueeze(-2)
    return lengths / math.pi * (angle.sin() + (math.pi - angle) * angle.cos())


def _network(x: Tensor, z: Tensor, depth: int, w_std: Any, b_std: Any, tangent: bool) -> Tensor:
    """Compute the recursion of Jacot, Gabriel and Hongler (2018) on the covariance of x and z together."""
    s, batch = x.shape[-2], torch.broadcast_shapes(x.shape[:-2], z.shape[:-2])
    points = torch.cat((x.expand(*batch, *x.shape[-2:]), z.expand(*batch, *z.shape[-2:])), -2)
    k = w_std**2 * torch.einsum("...sd,...qd->...sq", points, points) / x.shape[-1] + b_std**2
    total = k
    for _ in range(depth):
        variance = k.diagonal(dim1=-2, dim2=-1)
        angle, scale = _angle(k, variance, variance), variance.sqrt()
        active = w_std**2 * (math.pi - angle) / (2 * math.pi)
        both = scale.unsqueeze(-1) * scale.unsqueeze(-2)
        k = active * both * angle.cos() + w_std**2 * both * angle.sin() / (2 * math.pi) + b_std**2
        total = total * active + k
    return (total if tangent else k)[..., :s, s:]


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "linear": _linear,
    "rbf": _rbf,
    "laplace": _laplace,
    "matern": _matern,
    "rational_quadratic": _rational_quadratic,
    "polynomial": _polynomial,
    "cosine": _cosine,
    "arc_cosine": _arc_cosine,
    "nngp": functools.partial(_network, tangent=False),
    "ntk": functools.partial(_network, tangent=True),
}


def _matrix(value: Any) -> Any:
    """Return a hyper-parameter [...] in a shape that multiplies matrices [..., S, Q]."""
    return value[..., None, None] if isinstance(value, Tensor) else value


def kernel_matrix(kernel: Kernel, x: Tensor, z: Tensor) -> Tensor:
    if isinstance(kernel, (Sum, Product)):
        matrices = [kernel_matrix(part, x, z) for part in kernel.parts]
        return functools.reduce(torch.add if isinstance(kernel, Sum) else torch.mul, matrices)
    if isinstance(kernel, Scaled):
        return _matrix(kernel.factor) * kernel_matrix(kernel.kernel, x, z)
    if isinstance(kernel, ARD):
        over = kernel.lengthscale.to(x).unsqueeze(-2)
        return kernel_matrix(kernel.kernel, x / over, z / over)
    arguments = {field.name: _matrix(getattr(kernel, field.name)) for field in dataclasses.fields(kernel)}
    return FORMULAS[kernel.name](x, z, **arguments)


def regularised(k_ss: Tensor, ridge: Ridge) -> Tensor:
    """Return K + lambda I."""
    amount = _matrix(ridge.value)
    if ridge.kind == "noise":
        return k_ss + torch.diag_embed(torch.as_tensor(ridge.value))
    if ridge.kind != "absolute":
        trace = torch.einsum("...ii->...", k_ss)[..., None, None]
        trace = trace.detach() if ridge.detach else trace
        amount = amount * (trace if ridge.kind == "trace" else trace / k_ss.shape[-1])
    return k_ss + amount * torch.eye(k_ss.shape[-1], dtype=k_ss.dtype)


def solve(a: Tensor, y: Tensor, solver: str) -> Tensor:
    """Return A^-1 Y by "lu" (torch.linalg.solve) or by "cholesky" (the formulation that accuracy is compared with)."""
    batch = torch.broadcast_shapes(a.shape[:-2], y.shape[:-2])
    a, y = a.expand(*batch, *a.shape[-2:]), y.expand(*batch, *y.shape[-2:])
    if solver == "lu":
        return torch.linalg.solve(a, y)
    return torch.cholesky_solve(y, torch.linalg.cholesky(a))


def predictions(inputs: Inputs, solver: str = "lu") -> Tensor:
    """Return P [..., Q, C], differentiable by autograd, in the dtype of the inputs."""
    a = regularised(kernel_matrix(inputs.kernel, inputs.x_s, inputs.x_s), inputs.ridge)
    return kernel_matrix(inputs.kernel, inputs.x_q, inputs.x_s) @ solve(a, inputs.y_s, solver)


def mse(inputs: Inputs, solver: str = "lu") -> Tensor:
    """Return the mean squared error of each problem, [...]."""
    return (predictions(inputs, solver) - inputs.y_q).pow(2).mean((-2, -1))


def condition(inputs: Inputs) -> float:
    """Return the largest condition number of K_ss + lambda I in the batch."""
    wide = inputs.to(torch.float64)
    a = regularised(kernel_matrix(wide.kernel, wide.x_s, wide.x_s), wide.ridge).detach()
    return float(torch.linalg.cond(a).max()) if a.numel() else 1.0


# --- comparing --------------------------------------------------------------------------------------


def gradients(result: Tensor, inputs: Inputs, seed: int = 1) -> dict[str, Tensor]:
    """Return the gradients of <W, result> with a fixed Gaussian W, by name, for every leaf that the result depends
    on."""
    leaves = inputs.leaves()
    if not leaves or not result.requires_grad:
        return {}
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)
    grads = torch.autograd.grad((result * weight).sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return |got - want| / |want| in the Frobenius norm: of the worst problem in a batch, or of a whole vector."""
    got, expected = got.detach().double(), expected.detach().double()
    if got.shape != expected.shape:
        raise AssertionError(f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    axes = (-2, -1) if expected.dim() > 1 else tuple(range(expected.dim()))
    error, norm = (t.square().sum(axes).sqrt() for t in (got - expected, expected))
    ratio = torch.where(error == 0, torch.zeros_like(error), error / norm)
    return float(ratio.nan_to_num(nan=float("inf")).max())


# --- the table --------------------------------------------------------------------------------------

KRR_ST: dict[str, Any] = {"kernel": Linear(bias=1.0), "ridge": Ridge.trace(1e-6)}
FREPO: dict[str, Any] = {"kernel": Linear(), "ridge": Ridge.mean_trace(1e-6)}
RFAD: dict[str, Any] = {"kernel": Linear(2.0, 0.01), "ridge": Ridge.mean_trace(5e-3)}
WELL: dict[str, Any] = {"ridge": Ridge.absolute(1.0)}
SHAPES = {
    "one_support": (1, 6, 7, 3),
    "no_query": (5, 0, 7, 3),
    "one_query": (7, 1, 6, 2),
    "one_target": (9, 8, 11, 1),
    "one_feature": (8, 6, 1, 2),
    "odd": (37, 23, 51, 5),
    "block": (64, 64, 64, 16),
    "past_block": (65, 63, 129, 17),
    "many_targets": (10, 20, 30, 70),
    "tall": (50, 20, 9, 4),
    "blocks": (150, 70, 40, 8),
}
BOTH: dict[str, Kernel] = {"linear": Linear(1.5, 0.5), "rbf": RBF(4.0)}


def _table() -> list[Problem]:
    rows = [
        Problem("krr_st", 26, 40, 64, 16, **KRR_ST),
        Problem("frepo", 30, 41, 50, 10, **FREPO),
        Problem("rfad", 30, 41, 50, 10, **RFAD),
        Problem("krr_st_tall", 60, 33, 12, 5, **KRR_ST),
        Problem("large", 300, 200, 400, 20, **KRR_ST),
        Problem("large_tall", 400, 150, 48, 10, **KRR_ST),
        Problem("large_rbf", 200, 150, 30, 10, RBF(6.0), Ridge.mean_trace(1e-4)),
        Problem("tall_tiny_ridge", 40, 30, 8, 3, ridge=Ridge.trace(1e-8)),
        Problem("zero_ridge", 12, 9, 40, 3, ridge=Ridge.absolute(0.0)),
        Problem("ill_linear", 24, 17, 48, 4, Linear(bias=1.0), Ridge.mean_trace(1e-5), decay=3.0),
        Problem("ill_rbf", 24, 17, 3, 4, RBF(5.0), Ridge.trace(1e-6)),
        Problem("one_of_all", 1, 1, 1, 1, RBF(1.0), **WELL),
        Problem("one_of_all_linear", 1, 1, 1, 1, Linear(1.0, 1.0), **WELL),
        Problem("batch_broadcast", 9, 7, 15, 3, Linear(1.0, 1.0), **WELL, batch=(2, 1), batch_y_s=(3,), batch_q=()),
        Problem("batch_queries", 9, 7, 15, 3, RBF(4.0), **WELL, batch=(), batch_y_s=(), batch_q=(4,)),
    ]
    for name, kernel in BOTH.items():
        for shape, sizes in SHAPES.items():
            own = kernel if isinstance(kernel, Linear) else RBF(max(1.0, sizes[2] ** 0.5))
            rows.append(Problem(f"{shape}_{name}", *sizes, own, **WELL))
        for batch in ((0,), (1,), (5,), (2, 3), (2, 0)):
            label = "x".join(map(str, batch))
            rows.append(Problem(f"batch_{label}_{name}", 11, 6, 13, 2, kernel, Ridge.mean_trace(1e-2), batch=batch))
        rows += [
            Problem(f"{layout}_{name}", 19, 14, 21, 6, kernel, Ridge.mean_trace(1e-2), batch=(2,), layout=layout)
            for layout in LAYOUTS[1:]
        ]
        for kind in ("absolute", "trace", "mean_trace"):
            for detach in (False,) if kind == "absolute" else (False, True):
                ridge = Ridge(kind, 1e-2, detach)
                ending = f"{kind}{'_detached' * detach}_{name}"
                rows.append(Problem(f"ridge_{ending}", 13, 9, 17, 3, kernel, ridge, batch=(2,)))
                rows.append(Problem(f"hyper_{ending}", 13, 9, 17, 3, kernel, ridge, batch=(2, 3), hyper="batch"))
        for hyper in ("scalar", "broadcast"):
            ridge = Ridge.mean_trace(1e-2, detach=True)
            rows.append(Problem(f"hyper_{hyper}_{name}", 13, 9, 17, 3, kernel, ridge, batch=(2, 3), hyper=hyper))
    rows.append(Problem("hyper_tall_linear", 21, 9, 6, 3, BOTH["linear"], Ridge.trace(1e-2), hyper="scalar"))
    return rows


TABLE: dict[str, Problem] = {row.name: row for row in _table()}

# The kernels beside Linear and RBF, which have the whole table. Planned PyTorch can run all of them, the core most.
PLANNED_KERNELS: dict[str, Kernel] = {
    "laplace": Laplace(4.0),
    "laplace_1": Laplace(9.0, norm=1),
    "matern_1": Matern(4.0, nu=0.5),
    "matern_3": Matern(4.0, nu=1.5),
    "matern_5": Matern(4.0, nu=2.5),
    "rational_quadratic": RationalQuadratic(4.0, 0.7),
    "polynomial": Polynomial(3, 0.1, 0.5),
    "cosine": Cosine(),
    "arc_cosine_0": ArcCosine(0),
    "arc_cosine_1": ArcCosine(1),
    "nngp": NNGP(2, 1.4, 0.3),
    "ntk": NTK(3, 1.4, 0.3),
    "sum": Sum((RBF(4.0), Linear(0.5, 0.5), Matern(3.0, nu=1.5))),
    "product": Product((RBF(4.0), Linear(0.5, 0.5))),
    "scaled": Scaled(RBF(4.0), 2.0),
    "ard": ARD(RBF(1.0), torch.linspace(3.0, 6.0, 9)),
    "nested": Sum((Scaled(ARD(NTK(1, 1.4, 0.3), torch.linspace(0.5, 2.0, 9)), 0.3), Product((Cosine(), Cosine())))),
}
PLANNED_TABLE: dict[str, Problem] = {
    f"{name}_{hyper}": Problem(f"{name}_{hyper}", 11, 8, 9, 3, kernel, Ridge.absolute(0.3), batch, hyper=hyper)
    for name, kernel in PLANNED_KERNELS.items()
    for hyper, batch in (("numbers", ()), ("batch", (2,)), ("scalar", (2,)))
}
