"""Small problems in eager mode: loss and gradients in one native call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import plan
from ..kernels import KERNELS
from ..ridge import Ridge
from .krr import plan_shape
from .native import capsule, core, failure_code, to_capsule
from .register import refuse_double, transformed

# Below this many multiply-adds (both passes together take some tens of microseconds) the calls cost as much as the
# work: the forward computes the gradients too, scaled by 1, in the same native call, and the backward multiplies.
_SMALL = 6e6


@lru_cache(maxsize=1024)
def _small_plan(
    b: int, s: int, q: int, d: int, c: int, bordered: bool, itemsize: int, needs_x_s: bool, needs_x_q: bool,
    kernel: str, ridge: str, detach: bool, threads: int,
) -> tuple[list[int], int, int] | None:  # fmt: skip
    """(shape, code of the backward's plan, workspace elements), or None where the problem is not small."""
    linear = KERNELS[kernel].linear
    p = plan.Problem(s, q, d, c, linear, linear and bordered, itemsize, needs_x_s, needs_x_q)
    picked = plan.choose(p)
    if b == 0 or b * (plan.forward_costs(p)[picked.forward]) > _SMALL:
        return None
    shape = plan_shape(p, b, kernel, ridge, detach, picked.forward, max(picked.chunk, 1))
    code = plan.CODES[picked.backward]
    return shape, code, core.krr_value_and_gradient_workspace(shape, code)


class _SmallMse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, planned: tuple[list[int], int, int],
        values: list[float], on_failure: int,
    ) -> Tensor:  # fmt: skip
        shape, code, elements = planned
        need_x_s, need_y_s, need_x_q = ctx.needs_input_grad[:3]
        loss = x_s.new_empty(x_s.shape[:-2])
        bars = tuple(
            torch.empty(t.shape, dtype=t.dtype) if n else None
            for t, n in ((x_s, need_x_s), (y_s, need_y_s), (x_q, need_x_q))
        )
        failed = core.krr_value_and_gradient(
            shape, code, to_capsule(x_s), to_capsule(y_s), to_capsule(x_q), to_capsule(y_q), values, on_failure,
            to_capsule(loss), capsule(bars[0]), capsule(bars[1]), capsule(bars[2]),
            to_capsule(x_s.new_empty(elements)),
        )  # fmt: skip
        ctx.bars, ctx.inputs = bars, (x_s, y_s, x_q)
        if failed:
            raise _Failed
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            return (*_Once.apply(grad, *ctx.bars, *ctx.inputs), *(None,) * 4)
        return (*_times(grad, ctx.bars), *(None,) * 4)


def _times(grad: Tensor, bars: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    factor = grad[..., None, None] if grad.dim() else grad
    return tuple(None if bar is None else bar * factor for bar in bars)


class _Once(torch.autograd.Function):
    """The gradients of _SmallMse under create_graph: they may be used, not differentiated."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *rest: Tensor | None) -> Any:
        return _times(grad, rest[:3])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return refuse_double("krr")(ctx, *grads)


class _Failed(Exception):
    """A factorisation failed where on_failure is "raise": the ordinary op finds out which and says so."""


def _plain(*tensors: Tensor) -> bool:
    return all(type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)


def small_krr_mse(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, values: list[float], kernel: str, ridge: Ridge, on_failure: str
) -> Tensor | None:
    """The loss of a small problem with gradients to X_s, Y_s or X_q on the CPU, or None where another road is right:
    tensors of one shape [S, D] or [B, S, D] and one dtype, eager mode, no torch.func transform."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not _plain(x_s, y_s, x_q, y_q):
        return None
    if not (x_s.requires_grad or y_s.requires_grad or x_q.requires_grad) or y_q.requires_grad or not x_s.is_cpu:
        return None
    if transformed() or torch._C._len_torch_dispatch_stack():
        return None
    s, d = x_s.shape[-2:]
    q, c = y_q.shape[-2:]
    planned = _small_plan(
        x_s.shape[0] if x_s.dim() == 3 else 1, s, q, d, c, values[1] != 0, x_s.element_size(), x_s.requires_grad,
        x_q.requires_grad, kernel, ridge.kind, ridge.detach, torch.get_num_threads(),
    )  # fmt: skip
    if planned is None or plan.is_forced():
        return None
    try:
        return _SmallMse.apply(x_s, y_s, x_q, y_q, planned, values, failure_code(on_failure))
    except _Failed:
        return None
