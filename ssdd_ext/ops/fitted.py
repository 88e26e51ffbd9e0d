"""Eager fits on plain CPU tensors: one call of the core per pass, with and without gradients; see ``eager``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from .. import checks, plan
from ..kernels import Kernel
from ..ridge import KINDS, Ridge
from . import planned
from .eager import FailedProblem, backward_on_core, is_eager, is_plain, memory, sizes_of
from .krr import plan_shape
from .native import (
    capsule,
    core,
    failure_code,
    has_code,
    is_bordered,
    return_workspace,
    take_workspace,
    to_capsule,
)
from .second import pull_back, unpack


class _Sizes(NamedTuple):
    """How both passes run: their shapes, the coefficients' shape, where the saved parts lie, sizes."""

    forward: core.KrrShape
    backward: core.KrrShape
    coefficients: tuple[int, ...]
    primal: bool
    saved: tuple[int, int, int, int]  # of aux, the jitters and the status; all
    work: tuple[int, int]


@lru_cache(maxsize=1024)
def _sizes(
    x_s: torch.Size,
    y_s: torch.Size,
    itemsize: int,
    kernel: str,
    bordered: bool,
    ridge: str,
    detach: bool,
    threads: int,
) -> _Sizes:
    batch = x_s[:-2]
    b = batch.numel()
    p = sizes_of(x_s, y_s, 0, itemsize, kernel, bordered, (True, False))
    lanes, primal = plan.by_lanes(p, b), plan.is_primal(p)
    order = "primal" if primal else "low_rank" if lanes else "dense"
    forward = plan_shape(p, b, kernel, ridge, detach, order, 1, lanes=lanes)
    backward = forward
    if not primal and not lanes:
        backward = plan_shape(p, b, kernel, ridge, detach, plan.choose(p).backward, 1)
    work = core.krr_workspace(forward, False, False), core.krr_workspace(backward, True, False)
    coefficients = (*batch, forward.n, y_s[-1])
    return _Sizes(forward, backward, coefficients, primal, core.krr_fit_saved(forward), work)


class Fitted(NamedTuple):
    """alpha or, in the primal, the weights; and what the factorisation left behind."""

    coefficients: Tensor
    saved: Tensor
    places: tuple[int, int, int, int]  # in ``saved``: of aux, the jitters and the status; all
    primal: bool  # the coefficients are weights of the features

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The factor [..., n, n], lambda [...], the jitter [...] and the status [...], as views of what was saved."""
        batch, n = self.coefficients.shape[:-2], self.coefficients.shape[-2]
        at_aux, at_jitter, at_status, _ = self.places
        count = batch.numel()
        factor = self.saved[: count * n * n].view(*batch, n, n)
        amount = self.saved[at_aux : at_aux + 3 * count].view(*batch, 3)[..., 1]
        jitter = self.saved[at_jitter : at_jitter + count].view(batch)
        status = self.saved[at_status : at_status + count].view(torch.int32)[:count].view(batch)
        return factor, amount, jitter, status


def _run(x_s: Tensor, y_s: Tensor, sizes: _Sizes, values: list[float], on_failure: int) -> tuple[Fitted, int]:
    """Return the fit and how many problems failed."""
    coefficients, saved = x_s.new_empty(sizes.coefficients), x_s.new_empty(sizes.saved[-1])
    work = take_workspace(sizes.work[0], saved)
    outputs = to_capsule(coefficients), to_capsule(saved), to_capsule(work)
    failed = core.krr_fit(sizes.forward, memory(x_s), memory(y_s), values, on_failure, *outputs)
    return_workspace(work)
    return Fitted(coefficients, saved, sizes.saved, sizes.primal), failed


class _Fit(torch.autograd.Function):
    """The coefficients. ``left`` receives the rest of the fit, which has no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_s: Tensor,
        y_s: Tensor,
        sizes: _Sizes,
        options: tuple[list[float], str, str, bool],
        on_failure: int,
        left: list[Fitted],
    ) -> Tensor:
        fitted, failed = _run(x_s, y_s, sizes, options[0], on_failure)
        if failed:
            raise FailedProblem
        left.append(fitted)
        ctx.sizes, ctx.options = sizes, options
        ctx.save_for_backward(x_s, y_s, fitted.coefficients, fitted.saved)
        return fitted.coefficients

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return backward_on_core(ctx, grad, _backward, _differentiable)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x_s, y_s, coefficients, saved = ctx.saved_tensors
    need_x_s, need_y_s = ctx.needs_input_grad[:2]
    x_s_bar = x_s.new_empty(x_s.shape) if need_x_s else None
    y_s_bar = y_s.new_empty(y_s.shape) if need_y_s else None
    work = take_workspace(ctx.sizes.work[1], x_s)
    core.krr_fit_backward(
        ctx.sizes.backward,
        to_capsule(x_s),
        to_capsule(y_s),
        to_capsule(grad),
        ctx.options[0],
        to_capsule(coefficients),
        to_capsule(saved),
        capsule(x_s_bar),
        capsule(y_s_bar),
        to_capsule(work),
    )
    return_workspace(work)
    return x_s_bar, y_s_bar, None, None, None, None


def _differentiable(ctx: Any, grad: Tensor) -> Any:
    """Compute the gradients by planned PyTorch, which is differentiable and mappable."""
    x_s, y_s, _, _ = ctx.saved_tensors
    values, kernel, ridge, detach = ctx.options

    def first(x_s: Tensor, y_s: Tensor) -> tuple[Tensor, ...]:
        alpha, weights, *_ = planned.fit(x_s, y_s, *unpack(kernel, ridge, detach, None, values), "jitter")
        found = alpha if weights is None else weights
        assert found is not None and found.shape == ctx.sizes.coefficients
        return (found,)

    return (*pull_back(first, (x_s, y_s), (grad,)), None, None, None, None)


def eager_fit(x_s: Tensor, y_s: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str) -> Fitted | None:
    """Return the fit of a regression without queries; None if the ordinary path must run."""
    if torch.compiler.is_compiling() or not is_plain(x_s, y_s):
        return None
    if not isinstance(kernel, Kernel) or not isinstance(ridge, Ridge) or on_failure not in checks.ON_FAILURE:
        return None
    if not is_eager() or has_torch_function((x_s, y_s)) or ridge.kind not in KINDS:
        return None
    values: list[Any] = [*kernel.parameters, ridge.value]
    spec, sizes = kernel.spec, (x_s.shape, y_s.shape)
    if x_s.dtype is not y_s.dtype or not 2 <= len(sizes[0]) == len(sizes[1]) <= 3 or min(*sizes[0], *sizes[1]) < 1:
        return None
    if sizes[0][:-1] != sizes[1][:-1] or not has_code(kernel, spec, x_s.dtype):
        return None
    for value in values:
        if type(value) is not float:
            return None
    names = spec, is_bordered(spec, None, values), ridge.kind, ridge.detach
    found = _sizes(*sizes, x_s.element_size(), *names, torch.get_num_threads())
    follows = torch.is_grad_enabled() and (x_s.requires_grad or y_s.requires_grad)
    try:
        if follows:
            left: list[Fitted] = []
            options = values, spec, ridge.kind, ridge.detach
            coefficients = _Fit.apply(x_s, y_s, found, options, failure_code(on_failure), left)
            return left[0]._replace(coefficients=coefficients)
        fitted, failed = _run(x_s, y_s, found, values, failure_code(on_failure))
    except (FailedProblem, ValueError, BufferError):
        return None  # the ordinary path raises the error
    return None if failed and on_failure == "raise" else fitted
