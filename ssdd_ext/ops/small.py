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
from .eager import FailedProblem, is_eager, is_plain
from .krr import plan_shape
from .native import (
    capsule,
    core,
    failure_code,
    has_code,
    is_bordered,
    keeps_arguments,
    return_workspace,
    take_workspace,
    to_capsule,
)
from .second import krr_gradients, pull_back

# Below this many multiply-adds (both passes together take some tens of microseconds) the calls cost as much as the
# work. The forward then computes the gradients too, for a gradient of 1, in the same native call. So do lanes for a
# batch of any size: between two passes, inputs, factor and residual would go through memory once more.
_SMALL = 6e6
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
    p = plan.Problem(
        s, q, d, c, linear, linear and bordered, itemsize, needs_x_s, needs_x_q, arguments=keeps_arguments(kernel)
    )
    picked = plan.choose(p)
    lanes = plan.by_lanes(p, b)
    if not lanes and b * plan.forward_costs(p)[picked.forward] > _SMALL:
        return None
    dense = plan_shape(p, b, kernel, ridge, detach, "dense", max(picked.chunk, 1))
    if lanes:
        shape = plan_shape(p, b, kernel, ridge, detach, "low_rank", max(picked.chunk, 1), lanes=True)
        code = plan.CODES["low_rank"]
    elif picked.forward != "primal" and core.krr_fuses(dense, plan.CODES["dense"]):
        shape, code = dense, plan.CODES["dense"]  # both passes fused: no other order is as fast at these sizes
    else:
        shape = plan_shape(p, b, kernel, ridge, detach, picked.forward, max(picked.chunk, 1))
        code = plan.CODES[picked.backward]
    return shape, code, core.krr_value_and_gradient_workspace(shape, code)


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
        raise FailedProblem
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
        if _is_one(grad):
            return (*bars, None, None)
        return (*_times(grad, bars), None, None)


def _is_one(grad: Tensor) -> bool:
    try:
        return bool(grad.item() == 1 if grad.dim() == 0 else (grad == 1).all())
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


def plan_small(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str
) -> Call | None:
    """Return how the fast path runs this call, or None if the ordinary path runs it.

    The fast path is for small problems on the CPU with gradients to X_s, Y_s or X_q, in eager mode: tensors of one
    shape [S, D] or [B, S, D] and one dtype, hyper-parameters that are numbers.
    """
    # This check comes first, as the compiler cannot trace the ones below.
    if torch.compiler.is_compiling() or not is_plain(x_s, y_s, x_q, y_q):
        return None
    if not isinstance(kernel, Kernel) or not isinstance(ridge, Ridge):
        return None
    needs_x_s, needs_x_q = x_s.requires_grad, x_q.requires_grad
    if not (needs_x_s or needs_x_q or y_s.requires_grad) or y_q.requires_grad or not torch.is_grad_enabled():
        return None
    # has_torch_function is True for an active TorchFunctionMode.
    if not is_eager() or has_torch_function((x_s, y_s, x_q, y_q)) or on_failure not in checks.ON_FAILURE:
        return None
    if not x_s.dim() == y_s.dim() == x_q.dim() == y_q.dim():  # batch dimensions to broadcast
        return None
    values: list[Any] = [*kernel.parameters, ridge.value]
    spec = kernel.spec
    if not has_code(kernel, spec, x_s.dtype) or not all(type(v) is float for v in values):
        return None
    planned = _small_plan(
        x_s.shape,
        y_q.shape,
        x_s.element_size(),
        needs_x_s,
        needs_x_q,
        spec,
        is_bordered(spec, None, values),
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
    except (FailedProblem, ValueError, BufferError):
        # A factorisation failed, the core refused a shape, or a tensor has no memory (that of a transform that has
        # ended). The ordinary path checks everything and raises the error.
        return None
    return loss
