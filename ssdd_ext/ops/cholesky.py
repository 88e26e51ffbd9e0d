"""The ops `cholesky`, `solve` and `solve_backward`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import plan
from ..checks import full_precision, saved_tensors
from ..ridge import KINDS, Ridge
from .factor import factor_backward
from .hyper import pack
from .native import (
    capsule,
    core,
    failure_code,
    hyper_rows,
    matrices,
    raise_if_asked,
    return_workspace,
    ridge_text,
    stream,
    take_workspace,
    to_capsule,
)
from .planned_solve import gradient_of_inverse
from .register import library, register
from .second import mark_failed, pull_back, solve_gradients

library.define("cholesky(Tensor a, str on_failure) -> (Tensor, Tensor, Tensor)")
library.define(
    "solve(Tensor a, Tensor y, Tensor? hyper, float[] values, str ridge, bool detach, str on_failure,"
    " bool symmetric) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "solve_backward(Tensor grad, Tensor factor, Tensor x, Tensor aux, Tensor? hyper, float[] values, str ridge,"
    " bool detach, bool symmetric, Tensor? a, bool[] needs) -> (Tensor, Tensor, Tensor)"
)


def factor_and_solve(
    a: Tensor, y: Tensor | None, hyper: Tensor | None, values: list[float], ridge: str, on_failure: str
) -> tuple[Tensor, ...]:
    """Return (x or None, factor, status, jitter, aux) by one call of the core."""
    batch_shape, s, c = a.shape[:-2], a.shape[-1], 0 if y is None else y.shape[-1]
    batch, threads = math.prod(batch_shape), torch.get_num_threads()
    factor, x = a.new_empty(a.shape), None if y is None else y.new_empty(y.shape)
    # If the core is called, it writes all of these. Zeros would cost three more launches on a GPU.
    new = torch.empty if batch and s else torch.zeros
    status = new(batch_shape, dtype=torch.int32, device=a.device)
    jitter, aux = (new(n, dtype=a.dtype, device=a.device) for n in (batch_shape, (*batch_shape, 3)))
    if batch and s:
        work = take_workspace(core.cholesky_workspace(batch, s, c, threads, a.is_cuda), a)
        core.solve(
            matrices(a),
            matrices(y),
            hyper_rows(hyper),
            values,
            max(0, KINDS.index(ridge) if ridge else 0),
            failure_code(on_failure),
            to_capsule(factor),
            capsule(x),
            to_capsule(status),
            to_capsule(jitter),
            to_capsule(aux),
            to_capsule(work),
            batch,
            s,
            c,
            threads,
            stream(a),
            plan.gpu.CLUSTER,
        )
        return_workspace(work)
    return x, factor, status, jitter, aux  # type: ignore[return-value]


def _cholesky(a: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    _, factor, status, jitter, _ = factor_and_solve(a, None, None, [], "", on_failure)
    raise_if_asked("cholesky", status, on_failure, a.shape[-1], None)
    return factor, status, jitter


def _cholesky_fake(a: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    batch = a.shape[:-2]
    return a.new_empty(a.shape), a.new_empty(batch, dtype=torch.int32), a.new_empty(batch)


def _cholesky_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[0])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _cholesky_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None
    (factor,) = saved_tensors(ctx)
    return factor_backward(factor, grad), None


def _solve(
    a: Tensor,
    y: Tensor,
    hyper: Tensor | None,
    values: list[float],
    ridge: str,
    detach: bool,
    on_failure: str,
    symmetric: bool,
) -> tuple[Tensor, ...]:
    x, factor, status, jitter, aux = factor_and_solve(a, y, hyper, values, ridge, on_failure)
    raise_if_asked("cholesky_solve", status, on_failure, a.shape[-1], ridge_text(ridge, hyper, values))
    return x, factor, status, jitter, aux


def _solve_fake(a: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, ...]:
    batch = a.shape[:-2]
    status = a.new_empty(batch, dtype=torch.int32)
    return y.new_empty(y.shape), a.new_empty(a.shape), status, a.new_empty(batch), a.new_empty(*batch, 3)


def _solve_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, _, hyper, ctx.values, ctx.ridge, ctx.detach, _, ctx.symmetric = inputs
    x, factor, status, jitter, aux = output
    ctx.save_for_backward(x, factor, aux, hyper, a)  # a for a double backward only
    ctx.mark_non_differentiable(factor, status, jitter, aux)
    ctx.set_materialize_grads(False)


def _solve_autograd(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    x, factor, aux, hyper, a = saved_tensors(ctx)
    a = a if torch.is_grad_enabled() else None
    needs, options = list(ctx.needs_input_grad[:3]), (ctx.values, ctx.ridge, ctx.detach, ctx.symmetric)
    a_bar, y_bar, hyper_bar = _solve_backward_op(grad, factor, x, aux, hyper, *options, a, needs)
    return (a_bar if needs[0] else None, y_bar, hyper_bar if needs[2] else None, *(None,) * 5)


def _solve_backward(
    grad: Tensor,
    factor: Tensor,
    x: Tensor,
    aux: Tensor,
    hyper: Tensor | None,
    values: list[float],
    ridge: str,
    detach: bool,
    symmetric: bool,
    a: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    batch_shape, s, c = x.shape[:-2], x.shape[-2], x.shape[-1]
    batch, threads = math.prod(batch_shape), torch.get_num_threads()
    y_bar = x.new_empty(x.shape)
    a_bar = x.new_empty(factor.shape) if needs[0] else x.new_empty(0)
    v_bar = x.new_zeros(batch_shape) if needs[2] else None
    if batch and s:
        work = take_workspace(core.cholesky_workspace(batch, s, c, threads, x.is_cuda), x)
        core.solve_backward(
            matrices(grad),
            to_capsule(factor.contiguous()),
            to_capsule(x.contiguous()),
            to_capsule(aux.contiguous()),
            hyper_rows(hyper),
            values,
            max(0, KINDS.index(ridge) if ridge else 0),
            detach,
            to_capsule(a_bar) if needs[0] and symmetric else None,
            to_capsule(y_bar),
            capsule(v_bar),
            to_capsule(work),
            batch,
            s,
            c,
            threads,
            stream(x),
        )
        return_workspace(work)
        if needs[0] and not symmetric:
            a_bar = _raw_gradient(y_bar, x, values[-1] if hyper is None and values else hyper, ridge, detach)
    hyper_bar = x.new_zeros(0)
    if v_bar is not None and hyper is not None:
        hyper_bar = torch.zeros_like(hyper)
        hyper_bar[..., -1] = v_bar
    return a_bar, y_bar, hyper_bar


def _raw_gradient(u: Tensor, x: Tensor, value: Any, ridge: str, detach: bool) -> Tensor:
    """Return -u x^T, with what arrives through a trace that is not detached."""
    with full_precision(u):
        bar = gradient_of_inverse(u, x, symmetric=False)
    if ridge in ("trace", "mean_trace") and not detach:
        amount = value[..., -1] if isinstance(value, Tensor) else value
        slope = -(u * x).sum((-2, -1)) * amount / (x.shape[-2] if ridge == "mean_trace" else 1)
        bar.diagonal(dim1=-2, dim2=-1).add_(slope[..., None])
    return bar


def _solve_backward_fake(
    grad: Tensor, factor: Tensor, x: Tensor, aux: Tensor, hyper: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    needs = rest[-1]
    hyper_bar = hyper.new_empty(hyper.shape) if needs[2] and hyper is not None else x.new_empty(0)
    return x.new_empty(factor.shape) if needs[0] else x.new_empty(0), x.new_empty(x.shape), hyper_bar


def _second_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, factor, x, _, hyper, ctx.values, ctx.ridge, ctx.detach, ctx.symmetric, a, ctx.needs = inputs
    ctx.save_for_backward(grad, x, a, hyper, factor)
    ctx.set_materialize_grads(False)


def _second(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    *tensors, factor = saved_tensors(ctx)
    needs = [ctx.needs[0], True, ctx.needs[2]]  # the gradient to y is always computed
    options: Any = (ctx.values, ctx.ridge, ctx.detach, ctx.symmetric)

    def first(*values: Any) -> tuple[Tensor, ...]:
        every: Any = solve_gradients(*values, *options)
        return tuple(bar for bar, needed in zip(every, needs, strict=False) if needed)

    tensors[0] = mark_failed(tensors[0], factor)
    needed_bars = [bar for bar, needed in zip(bars, needs, strict=True) if needed]
    grad, x, a, hyper = pull_back(first, tensors, needed_bars)
    return grad, None, x, None, hyper, None, None, None, None, a, None


_cholesky_op = register("cholesky", _cholesky, _cholesky_fake, _cholesky_backward, _cholesky_setup)
_solve_op = register("solve", _solve, _solve_fake, _solve_autograd, _solve_setup)
_solve_backward_op = register("solve_backward", _solve_backward, _solve_backward_fake, _second, _second_setup)


def cholesky(a: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (L, status, jitter) of a [..., S, S]."""
    factor, status, jitter = _cholesky_op(a, on_failure)
    return factor, status, jitter


def cholesky_solve(a: Tensor, y: Tensor, ridge: Ridge | None, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return ((A + lambda I)^-1 Y, status, jitter); ``ridge=None`` means lambda = 0."""
    x, _, status, jitter = factored_solve(a, y, ridge, on_failure)
    return x, status, jitter


def factored_solve(
    a: Tensor, y: Tensor, ridge: Ridge | None, on_failure: str, symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ((A + lambda I)^-1 Y, factor, status, jitter). ``symmetric``: the gradient to A is symmetrised."""
    hyper, values = pack(None, ridge, a.shape[:-2], a.dtype, a.device)
    kind, detach = ("", False) if ridge is None else (ridge.kind, ridge.detach)
    x, factor, status, jitter, _ = _solve_op(a, y, hyper, values, kind, detach, on_failure, symmetric)
    return x, factor, status, jitter
