"""The ops `cholesky`, `solve` and `solve_backward`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..ridge import KINDS, Ridge
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
from .register import library, refuse_double, register

library.define("cholesky(Tensor a, str on_failure) -> (Tensor, Tensor, Tensor)")
library.define(
    "solve(Tensor a, Tensor y, Tensor? hyper, float[] values, str ridge, bool detach, str on_failure)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "solve_backward(Tensor grad, Tensor factor, Tensor x, Tensor aux, Tensor? hyper, float[] values, str ridge,"
    " bool detach, bool[] needs) -> (Tensor, Tensor, Tensor)"
)


def _factor(
    a: Tensor, y: Tensor | None, hyper: Tensor | None, values: list[float], ridge: str, on_failure: str
) -> tuple[Tensor, ...]:
    batch_shape, s, c = a.shape[:-2], a.shape[-1], 0 if y is None else y.shape[-1]
    batch, threads = math.prod(batch_shape), torch.get_num_threads()
    factor, x = a.new_empty(a.shape), None if y is None else y.new_empty(y.shape)
    # The core writes all of these where it is called; zeros would be three more launches on a GPU.
    fresh = torch.empty if batch and s else torch.zeros
    status = fresh(batch_shape, dtype=torch.int32, device=a.device)
    jitter, aux = (fresh(n, dtype=a.dtype, device=a.device) for n in (batch_shape, (*batch_shape, 3)))
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
        )
        return_workspace(work)
    return x, factor, status, jitter, aux  # type: ignore[return-value]


def _cholesky(a: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    _, factor, status, jitter, _ = _factor(a, None, None, [], "", on_failure)
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
    (factor,) = ctx.saved_tensors
    # Abar = L^-T Phi(L^T Lbar) L^-1, symmetrised; Phi takes the lower triangle and halves the diagonal.
    phi = (factor.mT @ grad).tril()
    phi = phi - 0.5 * torch.diag_embed(phi.diagonal(dim1=-2, dim2=-1))
    half = torch.linalg.solve_triangular(factor.mT, phi, upper=True)
    bar = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    return 0.5 * (bar + bar.mT), None


def _solve(
    a: Tensor, y: Tensor, hyper: Tensor | None, values: list[float], ridge: str, detach: bool, on_failure: str
) -> tuple[Tensor, ...]:
    x, factor, status, jitter, aux = _factor(a, y, hyper, values, ridge, on_failure)
    raise_if_asked("cholesky_solve", status, on_failure, a.shape[-1], ridge_text(ridge, hyper, values))
    return x, factor, status, jitter, aux


def _solve_fake(a: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, ...]:
    batch = a.shape[:-2]
    status = a.new_empty(batch, dtype=torch.int32)
    return y.new_empty(y.shape), a.new_empty(a.shape), status, a.new_empty(batch), a.new_empty(*batch, 3)


def _solve_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, hyper, ctx.values, ctx.ridge, ctx.detach, _ = inputs
    x, factor, status, jitter, aux = output
    ctx.save_for_backward(x, factor, aux, hyper)
    ctx.mark_non_differentiable(factor, status, jitter, aux)
    ctx.set_materialize_grads(False)


def _solve_autograd(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    x, factor, aux, hyper = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    a_bar, y_bar, hyper_bar = _solve_backward_op(grad, factor, x, aux, hyper, ctx.values, ctx.ridge, ctx.detach, needs)
    return (a_bar if needs[0] else None, y_bar, hyper_bar if needs[2] else None, None, None, None, None)


def _solve_backward(
    grad: Tensor,
    factor: Tensor,
    x: Tensor,
    aux: Tensor,
    hyper: Tensor | None,
    values: list[float],
    ridge: str,
    detach: bool,
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
            to_capsule(a_bar) if needs[0] else None,
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
    hyper_bar = x.new_zeros(0)
    if v_bar is not None and hyper is not None:
        hyper_bar = torch.zeros_like(hyper)
        hyper_bar[..., -1] = v_bar
    return a_bar, y_bar, hyper_bar


def _solve_backward_fake(
    grad: Tensor, factor: Tensor, x: Tensor, aux: Tensor, hyper: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    needs = rest[-1]
    hyper_bar = hyper.new_empty(hyper.shape) if needs[2] and hyper is not None else x.new_empty(0)
    return x.new_empty(factor.shape) if needs[0] else x.new_empty(0), x.new_empty(x.shape), hyper_bar


_cholesky_op = register("cholesky", _cholesky, _cholesky_fake, _cholesky_backward, _cholesky_setup)
_solve_op = register("solve", _solve, _solve_fake, _solve_autograd, _solve_setup)
_solve_backward_op = register("solve_backward", _solve_backward, _solve_backward_fake, refuse_double("cholesky_solve"))


def cholesky(a: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    """(L, status, jitter) of a [..., S, S]."""
    factor, status, jitter = _cholesky_op(a, on_failure)
    return factor, status, jitter


def cholesky_solve(a: Tensor, y: Tensor, ridge: Ridge | None, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    """((A + lambda I)^-1 Y, status, jitter); ``ridge=None`` is lambda = 0."""
    hyper, values = pack(None, ridge, a.shape[:-2], a.dtype, a.device)
    kind, detach = ("", False) if ridge is None else (ridge.kind, ridge.detach)
    x, _, status, jitter, _ = _solve_op(a, y, hyper, values, kind, detach, on_failure)
    return x, status, jitter
