"""Small problems in eager mode: loss and gradients in one native call.

At these sizes a call costs as much as the work, so this path has as few checks as possible. `plan_small` selects the
calls that it is for. All others, and calls that the core refuses, take the ordinary path, which raises their errors.
The core reads raw memory, without PyTorch's dispatcher. So everything that the dispatcher would resolve first takes the
ordinary path too: subclasses, modes, transforms, tracing, the negative bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from .. import checks, plan
from ..kernels import Kernel
from ..ridge import Ridge
from .krr import plan_shape
from .native import capsule, core, failure_code, is_of_angles, keeps_arguments, kernel_code, return_workspace, take_workspace, to_capsule
from .register import is_transformed
from .second import krr_gradients, pull_back

# Below this many multiply-adds (both passes together take some tens of microseconds) the calls cost as much as the
# work. The forward then computes the gradients too, for a gradient of 1, in the same native call.
_SMALL = 6e6
_DTYPES = (torch.float32, torch.float64)
_PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
Planned = tuple[core.KrrShape, int, int]
# (values, kernel, ridge, detach), the arguments of second.krr_gradients
Options = tuple[list[float], str, str, bool]
Call = tuple[Planned, list[float], int, Options]


@lru_cache(maxsize=1024)
def _small_plan(
    x_s: torch.Size,
    y_q: torch.Size,
    itemsize: int,
    needs_x_s: bool,
    needs_x_q: bool,
    kernel: str,
    bordered: bool,
    ridge: str,
    detach: bool,
    threads: int,
) -> Planned | None:
    """Return (shape, code of the backward's plan, workspace elements), or None if the problem is not small."""
    if not 2 <= len(x_s) == len(y_q) <= 3 or min(*x_s, *y_q) < 1:
        return None
    b, (s, d), (q, c) = x_s[:-2].numel(), x_s[-2:], y_q[-2:]
    linear = kernel == "linear"
    p = plan.Problem(s, q, d, c, linear, linear and bordered, itemsize, needs_x_s, needs_x_q, arguments=keeps_arguments(kernel))
    picked = plan.choose(p)
    if b * (plan.forward_costs(p)[picked.forward]) > _SMALL:
        return None
    dense = plan_shape(p, b, kernel, ridge, detach, "dense", max(picked.chunk, 1))
    if plan.by_lanes(p, b):
        shape = plan_shape(p, b, kernel, ridge, detach, "low_rank", max(picked.chunk, 1), lanes=True)
        code = plan.CODES["low_rank"]
    elif picked.forward != "primal" and core.krr_fuses(dense, plan.CODES["dense"]):
        shape, code = dense, plan.CODES["dense"]  # both passes fused: no other order is as fast at these sizes
    else:
        shape = plan_shape(p, b, kernel, ridge, detach, picked.forward, max(picked.chunk, 1))
        code = plan.CODES[picked.backward]
    return shape, code, core.krr_value_and_gradient_workspace(shape, code)


def _has_code(spec: str, dtype: torch.dtype) -> bool:
    return kernel_code(spec) is not None and (dtype is torch.float64 or not is_of_angles(spec))


def _is_bordered(spec: str, values: list[Any]) -> bool:
    return spec == "linear" and values[1] != 0


def _bar(like: Tensor, needed: bool) -> Tensor | None:
    return torch.empty_like(like, memory_format=torch.contiguous_format) if needed else None


def _run(x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, needs: Any, call: Call) -> tuple[Tensor, Any]:
    """Return (loss, its gradients to x_s, y_s and x_q)."""
    (shape, code, elements), values, on_failure, _ = call
    loss = torch.empty(x_s.shape[:-2], dtype=x_s.dtype, device=x_s.device)
    bars = _bar(x_s, needs[0]), _bar(y_s, needs[1]), _bar(x_q, needs[2])
    work = take_workspace(elements, loss)
    failed = core.krr_value_and_gradient(
        shape,
        code,
        to_capsule(x_s),
        to_capsule(y_s),
        to_capsule(x_q),
        to_capsule(y_q),
        values,
        on_failure,
        to_capsule(loss),
        capsule(bars[0]),
        capsule(bars[1]),
        capsule(bars[2]),
        to_capsule(work),
    )
    return_workspace(work)
    if failed:
        raise _Failed
    return loss, bars


class _SmallMse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, call: Call) -> Tensor:
        loss, ctx.bars = _run(x_s, y_s, x_q, y_q, ctx.needs_input_grad, call)
        ctx.call = call
        ctx.save_for_backward(x_s, y_s, x_q, y_q)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        bars, again = ctx.bars, torch.is_grad_enabled()
        # The gradients are returned once, so that a loss that is kept holds nothing. A second backward needs the saved
        # inputs, which torch refuses unless the graph was retained and the inputs are unchanged.
        ctx.bars = None
        inputs: Any = ctx.saved_tensors if bars is None or again else ()
        if bars is None:
            x_s, y_s, x_q, y_q = inputs
            bars = _run(x_s, y_s, x_q, y_q, ctx.needs_input_grad, ctx.call)[1]
        if again:
            return (*_Twice.apply(grad, *inputs, bars, ctx.call[-1]), None, None)
        if grad.dim() == 0 and _is_one(grad):
            return (*bars, None, None)
        return (*_times(grad, bars), None, None)


def _is_one(grad: Tensor) -> bool:
    try:
        return bool(grad.item() == 1)
    except RuntimeError:  # batched gradients (is_grads_batched) or a fake tensor: not a number
        return False


def _times(grad: Tensor, bars: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    factor = grad[..., None, None] if grad.dim() else grad
    return tuple(None if bar is None else bar * factor for bar in bars)


class _Twice(torch.autograd.Function):
    """The gradients of _SmallMse under create_graph, which planned PyTorch differentiates."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, bars: Any, options: Any
    ) -> Any:
        ctx.save_for_backward(grad, x_s, y_s, x_q, y_q)
        ctx.needs, ctx.options = [bar is not None for bar in bars], options
        ctx.set_materialize_grads(False)
        return _times(grad, bars)

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        grad, x_s, y_s, x_q, y_q = ctx.saved_tensors
        needed_bars = [bar for bar, needed in zip(bars, ctx.needs, strict=True) if needed]

        def first(grad: Tensor, x_s: Tensor, y_s: Tensor, x_q: Tensor) -> tuple[Tensor, ...]:
            values, kernel, ridge, detach = ctx.options
            every = krr_gradients(grad, x_s, y_s, x_q, None, None, values, kernel, ridge, detach, y_q)
            return tuple(bar for bar, needed in zip(every, ctx.needs, strict=False) if needed)

        return (*pull_back(first, (grad, x_s, y_s, x_q), needed_bars), None, None, None)


class _Failed(Exception):
    """A factorisation failed. The ordinary op finds out which one and applies on_failure."""


def _is_plain(*tensors: Tensor) -> bool:
    """Return True if each is a dense real tensor of PyTorch's own types, on the CPU, whose memory holds its values."""
    for t in tensors:
        # z.conj().imag is a view of memory that holds the negated numbers: is_neg().
        if type(t) not in _PLAIN or not t.is_cpu or t.dtype not in _DTYPES or t.layout is not _STRIDED or t.is_neg():
            return False
    return True


def _is_eager() -> bool:
    """Return True if only autograd observes a call: there is no tracer, transform, dispatch mode or forced plan."""
    traced = torch.jit.is_tracing() or is_transformed() or plan.is_forced()
    return not traced and not torch._C._len_torch_dispatch_stack()


def plan_small(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str
) -> Call | None:
    """Return how the fast path runs this call, or None if the ordinary path runs it.

    The fast path is for small problems on the CPU with gradients to X_s, Y_s or X_q, in eager mode: tensors of one
    shape [S, D] or [B, S, D] and one dtype, hyper-parameters that are numbers.
    """
    # This check comes first, as the compiler cannot trace the ones below.
    if torch.compiler.is_compiling() or not _is_plain(x_s, y_s, x_q, y_q):
        return None
    if not isinstance(kernel, Kernel) or not isinstance(ridge, Ridge):
        return None
    needs_x_s, needs_x_q = x_s.requires_grad, x_q.requires_grad
    if not (needs_x_s or needs_x_q or y_s.requires_grad) or y_q.requires_grad or not torch.is_grad_enabled():
        return None
    # has_torch_function is True for an active TorchFunctionMode.
    if not _is_eager() or has_torch_function((x_s, y_s, x_q, y_q)) or on_failure not in checks.ON_FAILURE:
        return None
    if not x_s.dim() == y_s.dim() == x_q.dim() == y_q.dim():  # batch dimensions to broadcast
        return None
    values: list[Any] = [*kernel.parameters, ridge.value]
    spec = kernel.spec
    if not _has_code(spec, x_s.dtype) or not all(type(v) is float for v in values):
        return None
    planned = _small_plan(
        x_s.shape,
        y_q.shape,
        x_s.element_size(),
        needs_x_s,
        needs_x_q,
        spec,
        _is_bordered(spec, values),
        ridge.kind,
        ridge.detach,
        torch.get_num_threads(),
    )
    if planned is None:
        return None
    return planned, values, failure_code(on_failure), (values, spec, ridge.kind, ridge.detach)


def small_krr_mse(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str
) -> Tensor | None:
    """Return the loss of a small problem, or None if the ordinary path must run it: see :func:`plan_small`."""
    call = plan_small(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
    if call is None:
        return None
    try:
        loss: Tensor = _SmallMse.apply(x_s, y_s, x_q, y_q, call)
    except (_Failed, ValueError, BufferError):
        # A factorisation failed, the core refused a shape, or a tensor has no memory (that of a transform that has
        # ended). The ordinary path checks everything and raises the error.
        return None
    return loss


# A call without gradients goes straight to the core up to so many multiply-adds; above, its cost is the work.
_MOST_WORK = 1e8


@lru_cache(maxsize=1024)
def _evaluation(
    x_s: torch.Size,
    y_s: torch.Size,
    q: int,
    itemsize: int,
    kernel: str,
    bordered: bool,
    ridge: str,
    detach: bool,
    threads: int,
) -> core.KrrShape | None:
    """The forward's shape, as the ordinary op plans it without gradients, or None."""
    if len(x_s) < 2 or len(x_s) > 3 or min(*x_s, *y_s, q) < 1:
        return None
    b, (s, d), c = x_s[:-2].numel(), x_s[-2:], y_s[-1]
    linear = kernel == "linear"
    p = plan.Problem(s, q, d, c, linear, linear and bordered, itemsize, False, False)
    picked = plan.choose(p)
    if b * plan.forward_costs(p)[picked.forward] > _MOST_WORK:
        return None
    lanes = plan.by_lanes(p, b)
    order = "low_rank" if lanes else picked.forward
    return plan_shape(p, b, kernel, ridge, detach, order, max(picked.chunk, 1), lanes=lanes)


def evaluate(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None, kernel: Kernel, ridge: Ridge, on_failure: str
) -> Tensor | None:
    """Predictions, or with ``y_q`` the loss, without gradients, of problems on the CPU whose call would cost as much
    as the work; None if the ordinary path must run. The bits are those of the ordinary path."""
    given = (x_s, y_s, x_q) if y_q is None else (x_s, y_s, x_q, y_q)
    if torch.compiler.is_compiling() or not _is_plain(*given):
        return None
    if not isinstance(kernel, Kernel) or not isinstance(ridge, Ridge) or on_failure not in checks.ON_FAILURE:
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return None
    if not _is_eager() or has_torch_function(given):
        return None
    batch = x_s.shape[:-2]
    if any(t.dtype is not x_s.dtype or t.shape[:-2] != batch for t in given) or x_q.dim() < 2:
        return None
    values: list[Any] = [*kernel.parameters, ridge.value]
    spec = kernel.spec
    if not _has_code(spec, x_s.dtype) or not all(type(v) is float for v in values):
        return None
    q, threads = x_q.shape[-2], torch.get_num_threads()
    size, bordered = x_s.element_size(), _is_bordered(spec, values)
    shape = _evaluation(x_s.shape, y_s.shape, q, size, spec, bordered, ridge.kind, ridge.detach, threads)
    if shape is None:
        return None
    predicts, code = y_q is None, failure_code(on_failure)
    result = x_s.new_empty((*batch, q, y_s.shape[-1]) if predicts else batch)
    work = take_workspace(core.krr_evaluate_workspace(shape, predicts, code), result)
    try:
        failed = core.krr_evaluate(
            shape,
            to_capsule(x_s.detach() if x_s.requires_grad else x_s),
            to_capsule(y_s.detach() if y_s.requires_grad else y_s),
            to_capsule(x_q.detach() if x_q.requires_grad else x_q),
            capsule(y_q.detach() if y_q is not None and y_q.requires_grad else y_q),
            values,
            code,
            to_capsule(result),
            to_capsule(work),
        )
    except (ValueError, BufferError):
        return None  # the ordinary path raises the error
    return_workspace(work)
    return None if failed else result
