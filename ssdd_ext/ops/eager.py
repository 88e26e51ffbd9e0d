"""Eager calls on plain CPU tensors: straight to the core, without PyTorch's dispatcher, with and without gradients.

The call of a small problem costs more than its work, so it is checked once, and planned once per shape. All other
calls, and those that the core refuses, take the ordinary path, which raises their errors. The bits are those of the
ordinary path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from .. import checks, plan
from ..kernels import Kernel
from ..ridge import KINDS, Ridge
from .hyper import pack
from .krr import differentiate, plan_shape
from .native import (
    capsule,
    core,
    failure_code,
    has_code,
    hyper_rows,
    is_bordered,
    keeps_arguments,
    return_workspace,
    take_workspace,
    to_capsule,
)
from .register import is_batched, is_transformed

_DTYPES = (torch.float32, torch.float64)
_PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
# (values, kernel, ridge, detach)
Options = tuple[list[float], str, str, bool]
# (context, gradient of the output) -> gradients of the inputs
Backward = Callable[[Any, Tensor], Any]


class FailedProblem(Exception):
    """A factorisation failed. The ordinary op finds out which one and applies on_failure."""


def is_plain(*tensors: Tensor) -> bool:
    """Return True if each is a dense real tensor of PyTorch's own types, on the CPU, whose memory holds its values."""
    for t in tensors:
        if type(t) not in _PLAIN or not t.is_cpu or t.dtype not in _DTYPES:
            return False
        # z.conj().imag is a view of memory that holds the negated numbers: is_neg().
        if t.layout is not _STRIDED or t.is_neg() or t.is_nested:
            return False
    return True


def is_eager() -> bool:
    """Return True if only autograd observes a call: there is no tracer, transform, dispatch mode or forced plan."""
    traced = torch.jit.is_tracing() or is_transformed() or plan.is_forced()
    return not traced and not torch._C._len_torch_dispatch_stack()


def memory(value: Tensor | None) -> Any:
    """Return a capsule of the tensor, or None; also of one that requires a gradient."""
    return None if value is None else to_capsule(value.detach() if value.requires_grad else value)


def backward_on_core(ctx: Any, grad: Tensor, on_core: Backward, by_ops: Backward) -> Any:
    """Return the gradients by the core's backward. If the backward is differentiated or mapped, or if the core cannot
    take ``grad``, operations of PyTorch compute them."""
    if torch.is_grad_enabled() or not is_plain(grad) or is_batched(grad) or not is_eager():
        return by_ops(ctx, grad)
    try:
        return on_core(ctx, grad)
    except (ValueError, BufferError):  # a gradient that is zero and has no memory
        return by_ops(ctx, grad)


def to_targets(residual: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient to Y_q of the mean of R^2, R = P - Y_q [..., Q, C], for a gradient [...] of the loss."""
    scale = -2.0 / (residual.shape[-1] * residual.shape[-2])
    return residual * (grad * scale)[..., None, None]


# --- without gradients ------------------------------------------------------------------------------

# A call without gradients goes straight to the core up to so many multiply-adds; above, its cost is the work.
_MOST_WORK = 1e8


def sizes_of(
    x_s: torch.Size, y_s: torch.Size, q: int, itemsize: int, kernel: str, bordered: bool, needs: tuple[bool, ...]
) -> plan.Problem:
    sizes = x_s[-2], q, x_s[-1], y_s[-1]
    return plan.Problem(
        *sizes, kernel == "linear", bordered, itemsize, needs[0], needs[1], arguments=keeps_arguments(kernel)
    )


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
    if len(x_s) > 3 or min(*x_s, *y_s, q) < 1:
        return None
    b = x_s[:-2].numel()
    p = sizes_of(x_s, y_s, q, itemsize, kernel, bordered, (False, False))
    picked = plan.choose(p)
    if b * plan.forward_costs(p)[picked.forward] > _MOST_WORK:
        return None
    lanes = plan.by_lanes(p, b)
    order = "low_rank" if lanes else picked.forward
    return plan_shape(p, b, kernel, ridge, detach, order, max(picked.chunk, 1), lanes=lanes)


def _evaluate(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None, options: Options, on_failure: str
) -> Tensor | None:
    values, *names = options
    q, threads = x_q.shape[-2], torch.get_num_threads()
    bordered = is_bordered(options[1], None, values)
    shape = _evaluation(x_s.shape, y_s.shape, q, x_s.element_size(), names[0], bordered, *names[1:], threads)
    if shape is None:
        return None
    predicts, code = y_q is None, failure_code(on_failure)
    batch = x_s.shape[:-2]
    result = x_s.new_empty((*batch, q, y_s.shape[-1]) if predicts else batch)
    work = take_workspace(core.krr_evaluate_workspace(shape, predicts, code), result)
    inputs = memory(x_s), memory(y_s), memory(x_q), memory(y_q)
    failed = core.krr_evaluate(shape, *inputs, values, code, to_capsule(result), to_capsule(work))
    return_workspace(work)
    return None if failed else result


# --- with gradients ---------------------------------------------------------------------------------


class _Recording(NamedTuple):
    """How both passes run: their shapes, whether K_qs is kept, where the saved parts lie, sizes."""

    forward: core.KrrShape
    backward: core.KrrShape
    keeps: bool
    rows: int  # of S numbers that are kept
    places: tuple[int, int, int, int]  # of the coefficients, K_qs and aux; all
    out: tuple[int, ...]
    work: tuple[int, int]


@lru_cache(maxsize=1024)
def _recording(
    x_s: torch.Size,
    y_s: torch.Size,
    q: int,
    itemsize: int,
    needs: tuple[bool, ...],
    kernel: str,
    bordered: bool,
    ridge: str,
    detach: bool,
    threads: int,
) -> _Recording | None:
    if len(x_s) > 3 or min(*x_s, *y_s, q) < 1:
        return None
    b = x_s[:-2].numel()
    p = sizes_of(x_s, y_s, q, itemsize, kernel, bordered, needs)
    picked = plan.choose(p)
    lanes = plan.by_lanes(p, b)
    orders = ("low_rank", "low_rank") if lanes else (picked.forward, picked.backward)
    forward, backward = (
        plan_shape(p, b, kernel, ridge, detach, order, max(picked.chunk, 1), lanes=lanes) for order in orders
    )
    keeps = picked.forward == "dense" and not lanes and p.kept_queries > 0
    work = core.krr_workspace(forward, False, False), core.krr_workspace(backward, True, False)
    return _Recording(
        forward, backward, keeps, p.kept_rows, core.krr_saved(forward, keeps), (*x_s[:-2], q, y_s[-1]), work
    )


class _Recorded(torch.autograd.Function):
    """Predictions, or the loss if there is y_q, and their gradients by one call of the core per pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x_s: Tensor,
        y_s: Tensor,
        x_q: Tensor,
        y_q: Tensor | None,
        hyper: Tensor | None,
        recording: _Recording,
        options: Options,
        on_failure: int,
    ) -> Tensor:
        out, saved = x_s.new_empty(recording.out), x_s.new_empty(recording.places[-1])
        loss = None if y_q is None else x_s.new_empty(x_s.shape[:-2])
        work = take_workspace(recording.work[0], out)
        inputs = to_capsule(x_s), to_capsule(y_s), to_capsule(x_q), capsule(y_q), hyper_rows(hyper)
        failed = core.krr_record(
            recording.forward,
            recording.keeps,
            *inputs,
            options[0],
            on_failure,
            to_capsule(out),
            capsule(loss),
            to_capsule(saved),
            to_capsule(work),
        )
        return_workspace(work)
        if failed:
            raise FailedProblem
        targets = y_q if ctx.needs_input_grad[3] else None
        ctx.recording, ctx.options, ctx.mse = recording, options, y_q is not None
        ctx.save_for_backward(x_s, y_s, x_q, targets, hyper, None if loss is None else out, saved)
        return out if loss is None else loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return backward_on_core(ctx, grad, _replay, _by_ops)


def _replay(ctx: Any, grad: Tensor) -> Any:
    x_s, y_s, x_q, _, hyper, residual, saved = ctx.saved_tensors
    need_x_s, need_y_s, need_x_q, need_y_q, need_hyper = ctx.needs_input_grad[:5]
    x_s_bar = x_s.new_empty(x_s.shape) if need_x_s else None
    y_s_bar = y_s.new_empty(y_s.shape) if need_y_s else None
    x_q_bar = x_q.new_empty(x_q.shape) if need_x_q else None
    hyper_bar = torch.empty_like(hyper) if need_hyper else None
    if need_x_s or need_y_s or need_x_q or need_hyper:
        work = take_workspace(ctx.recording.work[1], x_s)
        core.krr_replay(
            ctx.recording.backward,
            ctx.recording.keeps,
            to_capsule(x_s),
            to_capsule(y_s),
            to_capsule(x_q),
            to_capsule(grad if residual is None else residual),
            None if residual is None else to_capsule(grad.contiguous()),
            hyper_rows(hyper),
            ctx.options[0],
            to_capsule(saved),
            capsule(x_s_bar),
            capsule(y_s_bar),
            capsule(x_q_bar),
            capsule(hyper_bar),
            to_capsule(work),
        )
        return_workspace(work)
    y_q_bar = None
    if need_y_q:
        y_q_bar = to_targets(residual, grad)
    return x_s_bar, y_s_bar, x_q_bar, y_q_bar, hyper_bar, None, None, None


def _by_ops(ctx: Any, grad: Tensor) -> Any:
    """Compute the gradients by the registered op, which is differentiable and mappable."""
    x_s, y_s, x_q, y_q, hyper, residual, saved = ctx.saved_tensors
    batch, s, c, order = x_s.shape[:-2], x_s.shape[-2], y_s.shape[-1], ctx.recording.forward.n
    at_coef, at_kept, at_aux, _ = ctx.recording.places

    def part(start: int, *shape: int) -> Tensor:
        return saved[start : start + math.prod(batch) * math.prod(shape)].view(*batch, *shape)

    # The stand-in of a K_qs that is not kept is not read.
    kept = part(at_kept, ctx.recording.rows, s) if ctx.recording.keeps else x_s.new_empty(*batch, plan.STAND_IN, s)
    factor, coef, aux = part(0, order, order), part(at_coef, order, c), part(at_aux, 3)
    values, kernel, ridge, detach = ctx.options
    needed = ctx.needs_input_grad
    as_op = SimpleNamespace(
        mse=ctx.mse,
        saved_tensors=(x_s, y_s, x_q, y_q, hyper, residual, factor, coef, kept, aux),
        needs_input_grad=needed,
        values=values,
        kernel=kernel,
        ridge=ridge,
        detach=detach,
        needs=[needed[0], needed[1], needed[2], needed[4]],
    )
    return (*differentiate(as_op, grad, grad)[:5], None, None, None)


def _record(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor | None,
    hyper: Tensor | None,
    options: Options,
    on_failure: str,
) -> Tensor | None:
    values, *names = options
    needs = x_s.requires_grad, x_q.requires_grad
    bordered = is_bordered(options[1], hyper, values)
    threads = torch.get_num_threads()
    sizes = x_s.shape, y_s.shape, x_q.shape[-2], x_s.element_size()
    recording = _recording(*sizes, needs, names[0], bordered, *names[1:], threads)
    if recording is None:
        return None
    result: Tensor = _Recorded.apply(x_s, y_s, x_q, y_q, hyper, recording, options, failure_code(on_failure))
    return result


# --- both -------------------------------------------------------------------------------------------


def eager_krr(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None, kernel: Kernel, ridge: Ridge, on_failure: str
) -> Tensor | None:
    """Return predictions, or with ``y_q`` the loss; None if the ordinary path must run."""
    given = (x_s, y_s, x_q) if y_q is None else (x_s, y_s, x_q, y_q)
    if torch.compiler.is_compiling() or not is_plain(*given):
        return None
    if not isinstance(kernel, Kernel) or not isinstance(ridge, Ridge) or on_failure not in checks.ON_FAILURE:
        return None
    if not is_eager() or has_torch_function(given):
        return None
    batch = x_s.shape[:-2]
    if any(t.dtype is not x_s.dtype or t.shape[:-2] != batch for t in given) or min(x_s.dim(), x_q.dim()) < 2:
        return None
    values: list[Any] = [*kernel.parameters, ridge.value]
    spec = kernel.spec
    if not has_code(kernel, spec, x_s.dtype) or ridge.kind not in KINDS:
        return None
    tensors = [v for v in values if isinstance(v, Tensor)]
    if tensors and not (is_plain(*tensors) and all(v.dim() == 0 and v.dtype is x_s.dtype for v in tensors)):
        return None
    hyper = None
    follows = torch.is_grad_enabled() and any(t.requires_grad for t in (*given, *tensors))
    if tensors:
        if not follows or has_torch_function(tensors):
            return None
        hyper, values = pack(kernel, ridge, batch, x_s.dtype, x_s.device)
    options = values, spec, ridge.kind, ridge.detach
    try:
        if follows:
            return _record(x_s, y_s, x_q, y_q, hyper, options, on_failure)
        return _evaluate(x_s, y_s, x_q, y_q, options, on_failure)
    except (FailedProblem, ValueError, BufferError):
        return None  # the ordinary path raises the error
