"""Eager Gram matrices, and regressions from given ones, on plain CPU tensors: one call of the core per pass; see
``eager``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from .. import checks
from ..kernels import Kernel, matmul
from ..ridge import KINDS, Ridge
from . import planned
from .cholesky import factor_and_solve
from .eager import FailedProblem, backward_on_core, is_eager, is_plain, memory, to_targets
from .gram import forward as form_gram
from .native import capsule, core, failure_code, has_code, return_workspace, take_workspace, to_capsule
from .second import pull_back

Tensors = tuple[Tensor, ...]


class _Sizes(NamedTuple):
    shape: core.FromGramShape
    out: tuple[int, ...]
    saved: int
    work: int


@lru_cache(maxsize=1024)
def _sizes(k_ss: torch.Size, k_qs: torch.Size, c: int, ridge: str, detach: bool, keeps: bool, threads: int) -> _Sizes:
    batch = k_ss[:-2]
    shape = core.FromGramShape(
        batch=batch.numel(),
        s=k_ss[-1],
        q=k_qs[-2],
        c=c,
        ridge=KINDS.index(ridge),
        detach=detach,
        keeps=keeps,
        threads=threads,
    )
    saved, work = core.krr_from_gram_saved(shape)[-1], core.krr_from_gram_workspace(shape)
    return _Sizes(shape, (*batch, k_qs[-2], c), saved, work)


def _run(
    k_ss: Tensor, y_s: Tensor, k_qs: Tensor, y_q: Tensor | None, ridge: Ridge, keeps: bool, on_failure: int
) -> tuple[Tensor, Tensor | None, Tensor, _Sizes]:
    """Return (P, or R with y_q; the loss; what is saved; the sizes)."""
    threads = torch.get_num_threads()
    sizes = _sizes(k_ss.shape, k_qs.shape, y_s.shape[-1], ridge.kind, ridge.detach, keeps, threads)
    out, saved = k_ss.new_empty(sizes.out), k_ss.new_empty(sizes.saved)
    loss = None if y_q is None else k_ss.new_empty(k_ss.shape[:-2])
    work = take_workspace(sizes.work, out)
    inputs = memory(k_ss), memory(y_s), memory(k_qs), memory(y_q)
    outputs = to_capsule(out), capsule(loss), to_capsule(saved), to_capsule(work)
    assert not isinstance(ridge.value, Tensor)  # the caller has checked it
    failed = core.krr_from_gram(sizes.shape, *inputs, [ridge.value], on_failure, *outputs)
    return_workspace(work)
    if failed:
        raise FailedProblem
    return out, loss, saved, sizes


class _FromGram(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, k_ss: Tensor, y_s: Tensor, k_qs: Tensor, y_q: Tensor | None, ridge: Ridge, on_failure: int
    ) -> Tensor:
        # The backward of the loss needs K_qs^T R to the support, and of K_qs itself nothing more.
        keeps = y_q is not None and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        out, loss, saved, ctx.sizes = _run(k_ss, y_s, k_qs, y_q, ridge, keeps, on_failure)
        ctx.ridge = ridge
        ctx.save_for_backward(k_ss, y_s, k_qs, y_q, None if loss is None else out, saved)
        return out if loss is None else loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return backward_on_core(ctx, grad, _backward, _differentiable)


def _backward(ctx: Any, grad: Tensor) -> Any:
    k_ss, y_s, k_qs, _, residual, saved = ctx.saved_tensors
    need_k_ss, _, need_k_qs, need_y_q = ctx.needs_input_grad[:4]
    k_ss_bar = k_ss.new_empty(k_ss.shape) if need_k_ss else None
    y_s_bar = y_s.new_empty(y_s.shape)
    k_qs_bar = k_qs.new_empty(k_qs.shape) if need_k_qs else None
    work = take_workspace(ctx.sizes.work, k_ss)
    core.krr_from_gram_backward(
        ctx.sizes.shape,
        to_capsule(k_qs),
        to_capsule(grad if residual is None else residual),
        None if residual is None else to_capsule(grad.contiguous()),
        [ctx.ridge.value],
        to_capsule(saved),
        capsule(k_ss_bar),
        to_capsule(y_s_bar),
        capsule(k_qs_bar),
        to_capsule(work),
    )
    return_workspace(work)
    y_q_bar = None
    if need_y_q:
        y_q_bar = to_targets(residual, grad)
    return k_ss_bar, y_s_bar if ctx.needs_input_grad[1] else None, k_qs_bar, y_q_bar, None, None


def _differentiable(ctx: Any, grad: Tensor) -> Any:
    """Compute the gradients by planned PyTorch, which is differentiable and mappable."""
    k_ss, y_s, k_qs, y_q, _, _ = ctx.saved_tensors

    def first(k_ss: Tensor, y_s: Tensor, k_qs: Tensor, y_q: Tensor | None) -> Tensors:
        alpha = planned.factored_solve(k_ss, y_s, ctx.ridge, "jitter")[0]
        p = matmul(k_qs, alpha)
        return (p if y_q is None else (p - y_q).square().mean((-2, -1)),)

    bars: Sequence[Tensor | None] = pull_back(first, (k_ss, y_s, k_qs, y_q), (grad,))
    return (*bars, None, None)


def eager_from_gram(
    k_ss: Tensor, y_s: Tensor, k_qs: Tensor, y_q: Tensor | None, ridge: Ridge, on_failure: str
) -> Tensor | None:
    """Return predictions, or with ``y_q`` the loss; None if the ordinary path must run."""
    given = (k_ss, y_s, k_qs) if y_q is None else (k_ss, y_s, k_qs, y_q)
    if torch.compiler.is_compiling() or not is_plain(*given) or not isinstance(ridge, Ridge):
        return None
    if type(ridge.value) is not float or ridge.kind not in KINDS or on_failure not in checks.ON_FAILURE:
        return None
    if not is_eager() or has_torch_function(given):
        return None
    batch, dims = k_ss.shape[:-2], k_ss.dim()
    if not 2 <= dims <= 3 or any(t.dtype is not k_ss.dtype or t.shape[:-2] != batch for t in given):
        return None
    if y_s.dim() != dims or k_qs.dim() != dims or (y_q is not None and y_q.dim() != dims):
        return None
    if min(*k_ss.shape, *y_s.shape, *k_qs.shape) < 1:
        return None
    code = failure_code(on_failure)
    try:
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            result: Tensor = _FromGram.apply(k_ss, y_s, k_qs, y_q, ridge, code)
            return result
        out, loss, _, _ = _run(k_ss, y_s, k_qs, y_q, ridge, False, code)
        return out if loss is None else loss
    except (FailedProblem, ValueError, BufferError):
        return None  # the ordinary path raises the error


def eager_cholesky(a: Tensor, y: Tensor | None, ridge: Ridge | None, on_failure: str) -> Tensor | None:
    """Return the factor of A, or with ``y`` the solution (A + lambda I)^-1 Y, without gradients; None on the ordinary
    path."""
    given = (a,) if y is None else (a, y)
    if torch.compiler.is_compiling() or not is_plain(*given) or on_failure not in checks.ON_FAILURE:
        return None
    if ridge is not None and (not isinstance(ridge, Ridge) or type(ridge.value) is not float):
        return None
    if torch.is_grad_enabled() and (a.requires_grad or (y is not None and y.requires_grad)):
        return None
    if not is_eager() or has_torch_function(given):
        return None
    shape = a.shape
    if not 2 <= len(shape) <= 3 or shape[-1] != shape[-2] or min(shape) < 1:
        return None
    if y is not None and (y.dtype is not a.dtype or y.shape[:-1] != shape[:-1] or y.shape[-1] < 1):
        return None
    values: list[Any] = [] if ridge is None else [ridge.value]
    kind = "" if ridge is None else ridge.kind
    try:
        x, factor, status, _, _ = factor_and_solve(a.detach(), y, None, values, kind, on_failure)
    except (ValueError, BufferError):
        return None  # the ordinary path raises the error
    if on_failure == "raise" and status.any():
        return None
    return factor if y is None else x


def eager_gram(x: Tensor, z: Tensor | None, kernel: Kernel) -> Tensor | None:
    """Return K of x and z (x itself if z is None) without gradients; None if the ordinary path must run."""
    given = (x,) if z is None else (x, z)
    if torch.compiler.is_compiling() or not is_plain(*given) or not isinstance(kernel, Kernel):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or (z is not None and z.requires_grad)):
        return None
    if not is_eager() or has_torch_function(given):
        return None
    other, shape = x if z is None else z, x.shape
    if not 2 <= len(shape) == other.dim() <= 3 or min(*shape, *other.shape) < 1 or other.dtype is not x.dtype:
        return None
    if shape[:-2] != other.shape[:-2] or shape[-1] != other.shape[-1]:
        return None
    values: list[Any] = list(kernel.parameters)
    spec = kernel.spec
    if not has_code(kernel, spec, x.dtype) or not all(type(v) is float for v in values):
        return None
    if shape[:-1].numel() * other.shape[-2] > checks.MAX_ELEMENTS:
        return None
    try:
        return form_gram(x.detach(), None if z is None else z.detach(), None, values, spec)
    except (ValueError, BufferError):
        return None  # the ordinary path raises the error
