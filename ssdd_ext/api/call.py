"""What all calls share: checks of the common keywords, dtypes, batches, and the choice of the backend."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import checks, ops, plan, reference
from ..kernels import Kernel, Linear
from ..ridge import Ridge

DEFAULT_KERNEL = Linear()
DEFAULT_RIDGE = Ridge.trace(1e-6)  # KRR-ST's
# Each module has gram, cholesky, cholesky_solve, krr and krr_mse, with the same arguments.
RUNS: dict[str, Any] = {"native": ops, "planned": ops.planned, "torch": reference}


class Info(NamedTuple):
    """The outcome of a factorisation, one entry per problem, as tensors on the inputs' device.

    Args:
        status: int32 [...]; 0 for success, k > 0 the 1-based pivot that failed, -1 a hyper-parameter out of range.
        jitter: [...]; what was added to the diagonal in addition to the ridge (0 if the first factorisation succeeded).
    """

    status: Tensor
    jitter: Tensor


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

    def check_status(self, status: Tensor, jitter: Tensor, order: int) -> Info:
        """Raise for a failure if ``on_failure`` is "raise"; return the outcome otherwise."""
        # The native ops raise by themselves, also inside a compiled graph.
        if self.on_failure == "raise" and self.backend != "native":
            checks.raise_on_failure(self.op, status, order, self.ridge)
        return Info(status, jitter)

    def finish(self, result: Tensor, info: Info) -> Any:
        """Return the result of the public call. It is rounded to the caller's dtype here, after the last product."""
        if result.dtype != self.result:
            result = result.to(self.result)
        return (result, info) if self.return_info else result


def pick_backend(backend: str, device: torch.device, kernel: Kernel, sizes: plan.Problem | None) -> tuple[str, str]:
    """Return (backend, why) for ``backend="auto"`` or a backend by name; ("", why not) if that one cannot run."""
    if backend == "torch":
        return "torch", "asked for"
    no_native = ops.unavailable(device, kernel)
    if backend == "native":
        return ("native", "asked for") if no_native is None else ("", no_native)
    no_planned = None if backend == "auto" and no_native is None else ops.planned.unavailable()
    if backend == "planned":
        return ("planned", "asked for") if no_planned is None else ("", no_planned)
    if no_native is None:
        if sizes is not None and device.type == "cuda" and plan.planned_is_faster(sizes):
            return "planned", f"measured to be faster on a GPU: {plan.PLANNED_SOURCE}"
        return "native", "it can run"
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
            f"ridge: expected Ridge.absolute(v), Ridge.trace(v) or Ridge.mean_trace(v), got {checks.describe(ridge)}; "
            f"the conventions differ by orders of magnitude, so a bare number is refused"
        )
    device = checks.same_device(**tensors)
    work, result = checks.work_dtype(solve_dtype, **tensors)
    if check_finite:
        checks.finite(**tensors)
    batch = checks.batch_shape(**{n: t.shape[:-2] for n, t in tensors.items()})
    parameters = (*kernel.parameters, None if ridge is None else ridge.value)
    hyper_tensors = [p for p in parameters if isinstance(p, Tensor)]
    if hyper_tensors:
        batch = _broadcast_batch(batch, hyper_tensors, device)
        kernel, ridge = convert_parameters(kernel, work), convert_parameters(ridge, work)
    sizes = _sizes(tensors, kernel, work, batch) if device.type == "cuda" and backend == "auto" else None
    picked, why = pick_backend(backend, device, kernel, sizes)
    if not picked:
        raise ValueError(f"backend: {backend!r} cannot run {op} here: {why}; use backend='auto' or backend='torch'")
    return Call(op, kernel, ridge, batch, work, result, on_failure, return_info, picked, why)


Holder = TypeVar("Holder", Kernel, Ridge | None)


def convert_parameters(holder: Holder, dtype: torch.dtype) -> Holder:
    """Return a kernel or a ridge with its tensors in ``dtype``.

    They are converted once per call. The parts of a gradient that arrive from the fit and from the predictions cancel,
    so they must be added before the sum is rounded.
    """
    if holder is None:
        return holder
    own = {field.name: getattr(holder, field.name) for field in fields(holder)}
    wrong: dict[str, Any] = {n: v.to(dtype) for n, v in own.items() if isinstance(v, Tensor) and v.dtype != dtype}
    return replace(holder, **wrong) if wrong else holder


def _broadcast_batch(batch: torch.Size, tensors: list[Tensor], device: torch.device) -> torch.Size:
    """Return the batch shape, broadcast with the shapes of the hyper-parameters' tensors."""
    for p in tensors:
        if p.device != device and p.dim() > 0:
            raise ValueError(f"hyper-parameters: expected device {device}, where the inputs are, got {p.device}")
    return checks.batch_shape(inputs=batch, **{f"hyper-parameter {i}": p.shape for i, p in enumerate(tensors)})


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
    )


def check_problem(x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None = None) -> dict[str, Tensor]:
    """Check the shapes of one KRR problem: x_s [..., S, D], y_s [..., S, C], x_q [..., Q, D], y_q [..., Q, C]."""
    tensors = {"x_s": checks.tensor("x_s", x_s), "y_s": checks.tensor("y_s", y_s), "x_q": checks.tensor("x_q", x_q)}
    checks.not_empty("x_s", x_s, -2, "support point")
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
