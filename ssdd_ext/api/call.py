"""What all calls share: checks of the common keywords, dtypes, batches, and the choice of the backend."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks, ops, plan, reference
from ..kernels import Kernel, Linear, match_parameter
from ..ops.register import is_transformed
from ..ridge import VECTOR_KINDS, Ridge
from . import precision

UNKNOWN = torch.tensor(float("nan"))  # the condition number of a call whose outcome nobody asked for
WITHOUT_FACTOR = ("gram", "explain", "krr_path")
DEFAULT_KERNEL = Linear()
DEFAULT_RIDGE = Ridge.trace(1e-6)  # KRR-ST's
# Each module has gram, cholesky, cholesky_solve, krr and krr_mse, with the same arguments.
RUNS: dict[str, Any] = {"native": ops, "planned": ops.planned, "torch": reference}


class Info(NamedTuple):
    """The outcome of a factorisation, one entry per problem, as tensors on the inputs' device.

    Args:
        status: int32 [...]; 0 for success, k > 0 the 1-based pivot that failed, -1 a hyper-parameter out of range.
        jitter: [...]; what was added to the diagonal in addition to the ridge (0 if the first factorisation succeeded).
        condition: [...]; an estimate of the condition number of the matrix that was factored: K_ss + lambda I, or for a
            linear kernel with D < S the smaller Phi^T Phi + lambda I. It is a lower bound, rarely below half of the
            condition number, from a few rounds of power iteration on the factor. A float32 result has about
            7 - log10(condition) right digits with noisy targets. It costs O(S^2) and no synchronisation, and is
            computed only for ``return_info=True`` and when ``info`` of a fit is read. NaN for a problem that failed,
            and for ``Ridge.per_target`` if the core or planned PyTorch ran it.
    """

    status: Tensor
    jitter: Tensor
    condition: Tensor

    def __eq__(self, other: object) -> bool:
        return self is other  # tuples would ask whether tensors are true

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Call:
    """The keywords common to all calls, checked, and the backend that runs them; ``why`` is the reason in words."""

    op: str
    kernel: Kernel
    ridge: Ridge | None
    batch: torch.Size
    work: torch.dtype
    result: torch.dtype
    on_failure: str
    return_info: bool
    backend: str
    why: str
    tensors: dict[str, Tensor]
    looks: bool = False
    """The condition number is looked at, to warn: on the CPU, at the first call of a site."""

    @property
    def run(self) -> Any:
        """The module of the backend's functions."""
        return RUNS[self.backend]

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of the backend's functions that factor a matrix."""
        options: dict[str, Any] = {"on_failure": self.on_failure}
        if self.backend == "planned":
            options["watched"] = self.return_info or self.on_failure != "nan"
        return options

    @property
    def krr_options(self) -> dict[str, Any]:
        """Keywords of the backend's krr and krr_mse. The core leaves the factor out if nobody reads it."""
        reads = self.return_info or self.looks
        return {**self.options, "watched": reads} if self.backend == "native" else self.options

    def gram(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the Gram matrix of x [..., S, D] and z (None: of x with itself), NaN for a hyper-parameter out of
        range."""
        k: Tensor = self.run.gram(x, z, self.kernel)
        for valid in self.kernel.in_range() if self.backend != "native" else ():  # the core's is NaN then
            k = torch.where(valid[..., None, None], k, math.nan)
        return k

    def cast(self, value: Tensor) -> Tensor:
        """Return ``value`` in the dtype of the computation, with the common batch shape (no copy if it has both)."""
        if value.dtype != self.work:
            value = value.to(self.work)
        return value if value.shape[:-2] == self.batch else value.expand(*self.batch, *value.shape[-2:])

    def features(self, value: Tensor) -> Tensor:
        """Cast features like :meth:`cast`, but keep 16 bits if the native kernels read them (on a GPU)."""
        native = self.backend == "native"
        narrow = native and value.is_cuda and value.element_size() == 2 and self.work == torch.float32
        if not narrow:
            return self.cast(value)
        return value if value.shape[:-2] == self.batch else value.expand(*self.batch, *value.shape[-2:])

    def precision(self, like: Tensor) -> Any:
        """Switch autocast off for the products of the PyTorch backends. The native ops do not see autocast."""
        return contextlib.nullcontext() if self.backend == "native" else checks.full_precision(like)

    def name_failure(self) -> Any:
        """Return a context in which a failure names this call instead of the op that failed, and says it if an input
        is not finite or overflows."""
        return contextlib.nullcontext() if torch.compiler.is_compiling() else _name_failure(self)

    def check_status(self, status: Tensor, jitter: Tensor, order: int, factor: Tensor | None = None) -> Info:
        """Raise for a failure if ``on_failure`` is "raise"; return the outcome otherwise.

        Its condition number is computed if the caller asked for the outcome, and NaN if not.
        """
        # The native ops raise by themselves, also inside a compiled graph.
        if self.on_failure == "raise" and self.backend != "native":
            with self.name_failure():
                checks.raise_on_failure(self.op, status, order, None if self.ridge is None else in_words(self.ridge))
        if factor is None:
            return Info(status, jitter, UNKNOWN)
        known = precision.condition(factor) if self.looks or (self.return_info and self.op != "fit") else UNKNOWN
        if self.looks:
            precision.warn_if_worthless(self.op, known, self.ridge)
        return Info(status, jitter, known)

    def finish(self, result: Tensor, info: Info) -> Any:
        """Return the result of the public call. It is rounded to the caller's dtype here, after the last product."""
        if result.dtype != self.result:
            result = result.to(self.result)
        return (result, info) if self.return_info else result


@contextlib.contextmanager
def _name_failure(call: Call) -> Iterator[None]:
    try:
        yield
    except checks.FactorizationError as error:
        what = str(error).partition(":")[2]
        why = "" if is_transformed() else _why_not(call, "out of range" in what)
        if why:
            what = f" {why} (the factorisation failed:{what.partition(';')[0]})"
        raise checks.FactorizationError(f"{call.op}:{what}") from None


def _why_not(call: Call, out_of_range: bool) -> str:
    """Say which input or number is the cause of a failure; "" if none of them is."""
    found = "" if out_of_range else checks.why_not_finite(call.tensors, call.work)
    named = {f"{type(call.kernel).__name__}.{name}": p for name, p in call.kernel.named_parameters()}
    if call.ridge is not None:
        named[f"Ridge.{call.ridge.kind}"] = call.ridge.value
    found = found or checks.numbers_beyond(named, call.work)
    return found if found or out_of_range else _why_kernel_not_finite(call)


MOST_LOOKED_AT = 1 << 24
"""Elements of a Gram matrix that is computed again for the message of an error, at most."""


@torch.no_grad()
def _why_kernel_not_finite(call: Call) -> str:
    """Say whether the kernel or the ridge of finite inputs overflows; "" if neither does."""
    x = call.tensors.get("x_s")
    if x is None or x.is_meta or x.shape[:-1].numel() * x.shape[-2] > MOST_LOOKED_AT:
        return ""
    kind, wider = str(call.work).removeprefix("torch."), ", or solve_dtype=torch.float64"
    advice = f"change its parameters or scale x_s{'' if call.work == torch.float64 else wider}"
    k_ss = reference.gram(call.cast(x), None, call.kernel)
    if not bool(k_ss.isfinite().all()):
        return f"the kernel {call.kernel} overflows {kind} on these points; {advice}"
    ridge = call.ridge
    if ridge is None or ridge.kind in VECTOR_KINDS:
        return ""
    amount = ridge.amount(k_ss, match_parameter(ridge.value, k_ss))
    if isinstance(amount, Tensor) and not bool(amount.isfinite().all()):
        return f"lambda of {in_words(ridge)} overflows {kind}; use a smaller value"
    return ""


def in_words(ridge: Ridge) -> str:
    """Return the ridge as a user writes it."""
    value = "a tensor" if isinstance(ridge.value, Tensor) else f"{ridge.value:g}"
    return f"Ridge.{ridge.kind}({value})"


def pick_backend(
    backend: str, device: torch.device, kernel: Kernel, sizes: plan.Problem | None, ridge: Ridge | None = None
) -> tuple[str, str]:
    """Return (backend, why) for ``backend="auto"`` or a backend by name; ("", why not) if that one cannot run."""
    if backend == "torch":
        return "torch", "asked for"
    no_native = ops.unavailable(device, kernel)
    if no_native is None and ridge is not None and ridge.kind in VECTOR_KINDS:
        no_native = f"it has no Ridge.{ridge.kind}"
    if backend == "native":
        return ("native", "asked for") if no_native is None else ("", no_native)
    no_planned = None if backend == "auto" and no_native is None else ops.planned.unavailable()
    if backend == "planned":
        return ("planned", "asked for") if no_planned is None else ("", no_planned)
    if no_native is None:
        faster = plan.planned_is_faster(sizes) if sizes is not None and device.type == "cuda" else ""
        return ("planned", faster) if faster else ("native", "it can run")
    if no_planned is not None:
        return "torch", f"{no_native}; {no_planned}"
    return "planned", no_native


def prepare(
    op: str,
    tensors: dict[str, Tensor],
    kernel: Kernel,
    ridge: Ridge | None,
    on_failure: str,
    check_finite: bool,
    backend: str,
    solve_dtype: torch.dtype | None,
    return_info: bool = False,
) -> Call:
    """Check the common keywords and pick the backend."""
    checks.choice("on_failure", on_failure, checks.ON_FAILURE)
    checks.choice("backend", backend, checks.BACKENDS)
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel: expected a kernel object such as Linear() or RBF(1.0), got {checks.describe(kernel)}")
    if ridge is not None and not isinstance(ridge, Ridge):
        raise TypeError(
            f"ridge: expected Ridge.absolute(v), Ridge.trace(v) or Ridge.mean_trace(v) (or Ridge.per_target(v), "
            f"Ridge.noise(v)), got {checks.describe(ridge)}; "
            f"the conventions differ by orders of magnitude, so a bare number is refused"
        )
    device = checks.same_device(**tensors)
    work, result = checks.work_dtype(solve_dtype, **tensors)
    if check_finite:
        checks.finite(**tensors)
    batch = checks.batch_shape(**{n: t.shape[:-2] for n, t in tensors.items()})
    first = next(iter(tensors.values()))
    kernel.check_features(first.shape[-1])
    if kernel.extreme:
        kernel = kernel.in_own_unit(torch.empty(first.shape[-1], dtype=work, device=device))
    parameters = (*kernel.parameters, None if ridge is None else ridge.value)
    hyper_tensors = [p for p in parameters if isinstance(p, Tensor)]
    if hyper_tensors:
        if ridge is not None:
            targets = tensors.get("y_s", tensors.get("y"))
            assert targets is not None
            ridge.check_sizes(*targets.shape[-2:])
        batch = _broadcast_batch(batch, kernel, ridge, hyper_tensors, device)
        kernel, ridge = convert_parameters(kernel, ridge, work)
    sizes = _sizes(tensors, kernel, work, batch) if device.type == "cuda" and backend == "auto" else None
    picked, why = pick_backend(backend, device, kernel, sizes, ridge)
    if not picked:
        raise ValueError(f"backend: {backend!r} cannot run {op} here: {why}; use backend='auto' or backend='torch'")
    site = (op, first.shape, kernel.name, *(p if isinstance(p, float) else None for p in parameters))
    looks = op not in WITHOUT_FACTOR and precision.is_watched(first) and precision.is_new(work, site)
    return Call(op, kernel, ridge, batch, work, result, on_failure, return_info, picked, why, tensors, looks)


def convert_parameters(kernel: Kernel, ridge: Ridge | None, dtype: torch.dtype) -> tuple[Kernel, Ridge | None]:
    """Return the kernel and the ridge with their tensors in ``dtype``.

    They are converted once per call. The parts of a gradient that arrive from the fit and from the predictions cancel,
    so they must be added before the sum is rounded.
    """

    def convert(value: float | Tensor) -> float | Tensor:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype != dtype else value

    if any(convert(p) is not p for p in kernel.parameters):
        kernel = kernel.map(convert)
    return kernel, None if ridge is None else replace(ridge, value=convert(ridge.value))


def _broadcast_batch(
    batch: torch.Size, kernel: Kernel, ridge: Ridge | None, tensors: list[Tensor], device: torch.device
) -> torch.Size:
    """Return the batch shape, broadcast with the batch shapes of the hyper-parameters that are tensors."""
    for p in tensors:
        if p.device != device and p.dim() > 0:
            raise ValueError(f"hyper-parameters: expected device {device}, where the inputs are, got {p.device}")
    shapes = kernel.batch_shapes()
    own = None if ridge is None else ridge.batch_shape
    if ridge is not None and own is not None:
        shapes[f"Ridge.{ridge.kind}"] = own
    for name, shape in shapes.items():
        if len(shape) > len(batch):
            raise ValueError(_extra_dimension(name, shape, batch))
    try:
        return checks.batch_shape(inputs=batch, **{f"hyper-parameter {name}": shape for name, shape in shapes.items()})
    except ValueError as error:
        meanings = dict.fromkeys(f"one value {_meaning(name)}" for name in shapes)
        raise ValueError(f"{error}; {'; '.join(meanings)}") from None


OWN_DIMENSION = ("ARD.lengthscale", *(f"Ridge.{kind}" for kind in VECTOR_KINDS))


def _meaning(name: str) -> str:
    """Say how to write a value that is not one per problem."""
    if name.startswith("Ridge"):
        return "per target is Ridge.per_target(v), and one per support point Ridge.noise(v)"
    return "per feature is ARD(kernel, v)"


def _extra_dimension(name: str, shape: torch.Size, batch: torch.Size) -> str:
    """Return the error for a hyper-parameter with a dimension that the inputs lack. It lists what may be meant."""
    most = len(batch)
    if name.endswith(OWN_DIMENSION):
        expected, got = f"a tensor of at most {most} dimensions before the last", f"{tuple(shape)} before the last"
        others = "one vector for all as a tensor with one dimension, v[0]"
    else:
        expected, got = f"a number or a tensor of at most {most} dimensions", f"{tuple(shape)}"
        others = f"{for_all(shape)}; one value {_meaning(name)}"
    return (
        f"{name}: expected {expected}, as many batch dimensions as the inputs have, got shape {got}. "
        f"Write {others}; {for_each_problem(shape, batch)}"
    )


def for_all(shape: torch.Size) -> str:
    """Say how to write one value for all problems, for a value with more dimensions than the batch has."""
    single = "v.squeeze()" if shape.numel() == 1 else "v[0], or a number"
    return f"one value for all as a tensor without dimensions, {single}"


def for_each_problem(shape: torch.Size, batch: torch.Size) -> str:
    """Say how to write one value per problem, for a value with more dimensions than the batch has."""
    return (
        "one per problem of a batch, such as a grid of values, by giving the inputs that dimension: "
        f"x_s.expand({', '.join(map(str, shape[: len(shape) - len(batch)]))}, *x_s.shape)"
    )


def _sizes(tensors: dict[str, Tensor], kernel: Kernel, work: torch.dtype, batch: torch.Size) -> plan.Problem | None:
    """Return the sizes of a regression on features, for the choice of a backend; None for other calls and in a
    compiled graph."""
    if "x_q" not in tensors or torch.compiler.is_compiling():
        return None
    x_s, x_q = tensors["x_s"], tensors["x_q"]
    return plan.Problem(
        x_s.shape[-2],
        x_q.shape[-2],
        x_s.shape[-1],
        tensors["y_s"].shape[-1],
        kernel.linear,
        False,
        work.itemsize,
        batch=batch.numel(),
        feature_size=x_s.element_size(),
        angles=ops.angle_layers(kernel),
    )


def mean_over_queries(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over Q of losses [..., Q], weighted by a column [..., Q, 1] if it is given."""
    if weights is None:
        return losses.mean(-1)
    weights = weights.squeeze(-1).to(losses.dtype)
    return (weights * losses).sum(-1) / weights.sum(-1)


def check_problem(x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None = None) -> dict[str, Tensor]:
    """Check the shapes of one KRR problem: x_s [..., S, D], y_s [..., S, C], x_q [..., Q, D], y_q [..., Q, C]."""
    tensors = {"x_s": checks.tensor("x_s", x_s), "y_s": checks.tensor("y_s", y_s), "x_q": checks.tensor("x_q", x_q)}
    checks.not_empty("x_s", x_s, -2, "support point")
    _not_images(x_s, y_s, x_q)
    checks.size("y_s", y_s, -2, x_s.shape[-2], "x_s")
    checks.size("x_q", x_q, -1, x_s.shape[-1], "x_s")
    if y_q is not None:
        tensors["y_q"] = checks.tensor("y_q", y_q)
        checks.size("y_q", y_q, -2, x_q.shape[-2], "x_q")
        checks.size("y_q", y_q, -1, y_s.shape[-1], "y_s")
        checks.not_empty("x_q", x_q, -2, "query point (the mean over none is undefined)")
        checks.not_empty("y_s", y_s, -1, "target (the mean over none is undefined)")
    checks.product_fits(S=x_s.shape[-2], D=max(1, x_s.shape[-1]), batch=max(1, x_s.shape[:-2].numel()))
    checks.product_fits(S=x_s.shape[-2], Q=max(1, x_q.shape[-2]), batch=max(1, x_s.shape[:-2].numel()))
    return tensors


def _not_images(x_s: Tensor, y_s: Tensor, x_q: Tensor) -> None:
    """Raise for inputs such as images [S, channels, height, width], whose leading dimension is that of the points."""
    if x_s.dim() > y_s.dim() and y_s.shape[-2] != x_s.shape[-2] and y_s.shape[-2] == x_s.shape[y_s.dim() - 2]:
        at = y_s.dim() - 1
        queries = f", and x_q.flatten({at})" if x_q is not x_s and x_q.dim() == x_s.dim() else ""
        raise ValueError(
            f"x_s: expected features [..., S, D], one row per point, got {checks.describe(x_s)} beside targets of "
            f"shape {tuple(y_s.shape)}; if each of its {y_s.shape[-2]} points has several dimensions, such as an "
            f"image, pass x_s.flatten({at}){queries}"
        )
