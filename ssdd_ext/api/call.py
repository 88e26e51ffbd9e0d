"""What all calls share: names and checks of the common keywords, dtypes, batches, the backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks, ops
from ..kernels import Kernel, Linear
from ..ridge import Ridge

NO_KERNEL = Linear()
DEFAULT_RIDGE = Ridge.trace(1e-6)  # KRR-ST's


class Info(NamedTuple):
    """What happened, one entry a problem, as tensors on the inputs' device.

    status: int32 [...]; 0 success, k > 0 the 1-based pivot that failed, -1 a hyper-parameter out of range.
    jitter: [...]; what was added to the diagonal beside the ridge (0 where the first factorisation succeeded).
    """

    status: Tensor
    jitter: Tensor


@dataclass(frozen=True)
class Call:
    """The keywords common to all calls, checked, and the hyper-parameters as the backends take them."""

    op: str
    kernel: Kernel
    ridge: Ridge | None
    batch: torch.Size
    work: torch.dtype
    result: torch.dtype
    hyper: Tensor | None
    values: list[float]
    on_failure: str
    native: bool

    def cast(self, value: Tensor) -> Tensor:
        """``value`` in the dtype of the computation, with the common batch shape (no copy where it has both)."""
        if value.dtype != self.work:
            value = value.to(self.work)
        return value if value.shape[:-2] == self.batch else value.expand(*self.batch, *value.shape[-2:])

    def features(self, value: Tensor) -> Tensor:
        """The same for features, which stay 16 bits wide where the native kernels read those (on a GPU)."""
        narrow = self.native and value.is_cuda and value.element_size() == 2 and self.work == torch.float32
        if not narrow:
            return self.cast(value)
        return value if value.shape[:-2] == self.batch else value.expand(*self.batch, *value.shape[-2:])

    def checked(self, status: Tensor, jitter: Tensor, order: int) -> Info:
        """Raise for a failure if the call asks for that, else return what happened."""
        # The native ops raise by themselves, also inside a compiled graph.
        if self.on_failure == "raise" and not self.native:
            checks.raise_on_failure(self.op, status, order, self.ridge)
        return Info(status, jitter)

    def finish(self, result: Tensor, info: Info, return_info: bool) -> Any:
        """What the public call returns. Only here is it rounded to the caller's dtype, behind the last product."""
        if result.dtype != self.result:
            result = result.to(self.result)
        return (result, info) if return_info else result


def _number_if_so(p: float | Tensor, device: torch.device) -> float | Tensor:
    """A scalar on the CPU beside inputs on a GPU is a number where nothing differentiates, compiles or maps it: to copy
    it there, torch would wait for the GPU."""
    if not isinstance(p, Tensor) or p.dim() > 0 or p.device.type != "cpu" or device.type == "cpu":
        return p
    followed = p.requires_grad or torch.compiler.is_compiling() or ops.transformed()
    if type(p) in (Tensor, torch.nn.Parameter) and not followed:
        return float(p)
    if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"hyper-parameters: expected device {device}, where the inputs are, while a CUDA graph is captured, got cpu"
        )
    return p


def _hyper(
    kernel: Kernel, ridge: Ridge | None, batch: torch.Size, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, list[float], torch.Size]:
    """(hyper [..., H] or None where all are numbers, the numbers, the batch shape with the tensors' in it)."""
    parameters = [_number_if_so(p, device) for p in (*kernel.parameters, 0.0 if ridge is None else ridge.value)]
    tensors = [p for p in parameters if isinstance(p, Tensor)]
    if not tensors:
        return None, [float(p) for p in parameters], batch
    for p in tensors:
        if p.device != device and p.dim() > 0:
            raise ValueError(f"hyper-parameters: expected device {device}, where the inputs are, got {p.device}")
    shapes = {f"hyper-parameter {i}": p.shape for i, p in enumerate(tensors)}
    batch = checks.batch_shape(inputs=batch, **shapes)
    columns = [
        p.to(device=device, dtype=dtype).expand(batch)
        if isinstance(p, Tensor)
        else torch.full(batch, float(p), dtype=dtype, device=device)
        for p in parameters
    ]
    return torch.stack(columns, -1), [0.0] * len(parameters), batch


def prepare(
    op: str,
    tensors: dict[str, Tensor],
    kernel: Kernel,
    ridge: Ridge | None,
    on_failure: str,
    check_finite: bool,
    backend: str,
    solve_dtype: torch.dtype | None,
) -> Call:
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
    hyper, values, batch = _hyper(kernel, ridge, batch, work, device)
    native = backend != "torch"
    reason = ops.unavailable(device, kernel) if native else None
    if reason is not None:
        if backend == "native":
            raise ValueError(f"backend: 'native' cannot run {op} here: {reason}; use backend='torch'")
        native = False
    return Call(op, kernel, ridge, batch, work, result, hyper, values, on_failure, native)


def check_problem(x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None = None) -> dict[str, Tensor]:
    """The shapes of one KRR problem: x_s [..., S, D], y_s [..., S, C], x_q [..., Q, D], y_q [..., Q, C]."""
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
