"""The ops `krr` and `krr_backward`: predictions, or the mean squared error, from one factorisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import plan
from ..checks import full_precision, saved_tensors
from ..kernels import Kernel, matmul
from ..ridge import KINDS, Ridge
from .any_gram import gram
from .cholesky import factored_solve
from .hyper import pack
from .native import (
    core,
    failure_code,
    gpu,
    hyper_rows,
    is_bordered,
    is_of_angles,
    keeps_arguments,
    matrices,
    native_code,
    raise_if_asked,
    return_workspace,
    ridge_text,
    stream,
    take_workspace,
    to_capsule,
)
from .register import library, register
from .second import krr_gradients, mark_failed, pull_back
from .simplify import core_kernel, guarded, is_composed, parts, simplify

library.define(
    "krr(Tensor x_s, Tensor y_s, Tensor x_q, Tensor? y_q, Tensor? hyper, float[] values, str kernel, str ridge,"
    " bool detach, str on_failure, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "krr_backward(Tensor grad, Tensor x_s, Tensor y_s, Tensor x_q, Tensor? residual, Tensor factor, Tensor coef,"
    " Tensor kept, Tensor aux, Tensor? hyper, float[] values, str kernel, str ridge, bool detach, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


# Largest number of elements that torch fills on one thread.
_SMALL_FILL = 1 << 14


def _problem(
    x_s: Tensor, y_s: Tensor, q: int, hyper: Tensor | None, values: list[float], kernel: str, needs: list[bool]
) -> plan.Problem:
    # Features may have 16 bits; everything else has the targets' dtype. The batch matters on a GPU, which runs problems
    # side by side.
    linear = kernel == "linear"
    return plan.Problem(
        x_s.shape[-2],
        q,
        x_s.shape[-1],
        y_s.shape[-1],
        linear,
        is_bordered(kernel, hyper, values),
        y_s.element_size(),
        needs[0],
        needs[2],
        math.prod(x_s.shape[:-2]) if x_s.is_cuda else 1,
        x_s.element_size(),
        keeps_arguments(kernel),
    )


def plan_shape(
    p: plan.Problem,
    batch: int,
    kernel: str,
    ridge: str,
    detach: bool,
    which: str,
    chunk: int,
    fused_gram: bool = False,
    lanes: bool = False,
    parts: int = 0,
) -> core.KrrShape:
    """Return the core's shape of one pass; ``which`` is the order of its products, which ``parts`` blocks of queries
    per problem replace if there are any."""
    bordered = p.bordered and which == "primal"
    code, degree = native_code(kernel)
    return core.KrrShape(
        batch=batch,
        s=p.s,
        q=p.q,
        d=p.d,
        c=p.c,
        n=p.d + bordered if which == "primal" else p.s,
        kernel=code,
        order=degree,
        ridge=KINDS.index(ridge),
        detach=detach,
        bordered=bordered,
        plan=plan.CODES[which],
        chunk=chunk,
        threads=torch.get_num_threads(),
        fused_gram=fused_gram,
        lanes=lanes,
        halves=plan.gpu.HALVES,
        cluster=plan.gpu.CLUSTER,
        products=plan.gpu.by_products(batch, p.s, max(p.s, p.q), p.d),
        parts=parts,
    )


def _parts(p: plan.Problem, x_s: Tensor, y_q: Tensor | None) -> Any:
    """Return the blocks of queries per problem that read the queries once; 0 if the products of an order run."""
    return plan.one_pass.blocks(p) if x_s.is_cuda and y_q is not None and not plan.is_forced() else 0


def _krr(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor | None,
    hyper: Tensor | None,
    values: list[float],
    kernel: str,
    ridge: str,
    detach: bool,
    on_failure: str,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    batch_shape, c, q = x_s.shape[:-2], y_s.shape[-1], x_q.shape[-2]
    batch = math.prod(batch_shape)
    problem = _problem(x_s, y_s, q, hyper, values, kernel, needs)
    lanes = not x_s.is_cuda and plan.by_lanes(problem, batch)
    picked = plan.choose(problem, gpu(x_s))
    n = problem.order
    # Rows are kept in the dense order, unless a test forces another; lanes leave them as they are.
    # A fifth entry asks for the factor, which lanes otherwise write only for a backward.
    parts = _parts(problem, x_s, y_q)
    leaves = any(needs[:4]) and parts > 0  # the sums of the blocks, in place of K_qs
    keeps = any(needs[:4]) and not parts and (picked.forward == "dense" or lanes)
    rows = problem.kept_rows if keeps else 0
    saves = any(needs) or not lanes or on_failure == "jitter"
    out = y_s.new_empty(*batch_shape, q, c)
    loss = y_s.new_empty(batch_shape if y_q is not None else (0,))
    # torch.zeros is not used: a large fill runs on torch's threads, which hangs in a forked child.
    factor, coef = y_s.new_empty(*batch_shape, n, n), y_s.new_empty(*batch_shape, n, c)
    if leaves:
        kept = y_s.new_empty(*batch_shape, parts, plan.one_pass.part_elements(problem.s, problem.d, problem.c))
    else:
        kept = y_s.new_empty(*batch_shape, max(plan.STAND_IN, rows), problem.s)
    if not rows and not leaves:
        for part in (kept,) if kept.is_cuda else kept.view(-1).split(_SMALL_FILL):  # on a GPU one launch
            part.zero_()
    aux, jitter = y_s.new_empty(*batch_shape, 3), y_s.new_empty(batch_shape)
    status = torch.empty(batch_shape, dtype=torch.int32, device=x_s.device)
    if batch:
        order = "low_rank" if lanes else picked.forward
        how = picked.chunk, picked.fused_gram, lanes, parts
        shape = plan_shape(problem, batch, kernel, ridge, detach, order, *how)
        work = take_workspace(core.krr_workspace(shape, False, x_s.is_cuda), y_s)
        core.krr_forward(
            shape,
            matrices(x_s),
            matrices(y_s),
            matrices(x_q),
            matrices(y_q),
            hyper_rows(hyper),
            values,
            failure_code(on_failure),
            to_capsule(out),
            to_capsule(loss) if y_q is not None else None,
            to_capsule(factor) if saves else None,
            to_capsule(coef) if saves else None,
            to_capsule(kept) if leaves or (rows and not lanes) else None,
            to_capsule(aux),
            to_capsule(jitter),
            to_capsule(status),
            to_capsule(work),
            stream(x_s),
        )
        return_workspace(work)
        raise_if_asked("krr" if y_q is None else "krr_mse", status, on_failure, n, ridge_text(ridge, hyper, values))
    return out, loss, factor, coef, kept, aux, jitter, status


def _krr_fake(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor | None,
    hyper: Tensor | None,
    values: list[float],
    kernel: str,
    ridge: str,
    detach: bool,
    on_failure: str,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    batch, s, c, q = x_s.shape[:-2], x_s.shape[-2], y_s.shape[-1], x_q.shape[-2]
    problem = _problem(x_s, y_s, q, hyper, values, kernel, needs)
    n, rows, columns = problem.order, problem.saved_rows if any(needs[:4]) else plan.STAND_IN, s
    parts = _parts(problem, x_s, y_q)
    if any(needs[:4]) and parts > 0:
        rows, columns = parts, plan.one_pass.part_elements(s, problem.d, c)
    return (
        y_s.new_empty(*batch, q, c),
        y_s.new_empty(batch if y_q is not None else (0,)),
        y_s.new_empty(*batch, n, n),
        y_s.new_empty(*batch, n, c),
        y_s.new_empty(*batch, rows, columns),
        y_s.new_empty(*batch, 3),
        y_s.new_empty(batch),
        y_s.new_empty(batch, dtype=torch.int32),
    )


def _krr_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_s, y_s, x_q, y_q, hyper, ctx.values, ctx.kernel, ctx.ridge, ctx.detach, _, ctx.needs = inputs
    out, loss, factor, coef, kept, aux, jitter, status = output
    ctx.mse = y_q is not None
    targets = y_q if ctx.mse and ctx.needs_input_grad[3] else None
    ctx.save_for_backward(x_s, y_s, x_q, targets, hyper, out if ctx.mse else None, factor, coef, kept, aux)
    ctx.mark_non_differentiable(factor, coef, kept, aux, jitter, status, out if ctx.mse else loss)
    ctx.set_materialize_grads(False)


def differentiate(ctx: Any, grad_out: Tensor | None, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    """Return the gradients to the op's inputs, by the op krr_backward; ``ctx`` is the context of :func:`_krr_setup`."""
    grad = grad_loss if ctx.mse else grad_out
    if grad is None:
        return (None,) * 11
    x_s, y_s, x_q, y_q, hyper, residual, factor, coef, kept, aux = saved_tensors(ctx)
    moving = residual
    if y_q is not None and torch.is_grad_enabled():
        # In a second derivative the residual depends on everything. The op below differentiates all but the targets, so
        # its residual depends on them alone. The targets' own gradient needs the dependence on the rest.
        residual = residual + (y_q.detach() - y_q)
        options = ctx.values, ctx.kernel, ctx.ridge, ctx.detach, "jitter", ctx.needs
        moving = _krr_op(x_s, y_s, x_q, None, hyper, *options)[0] - y_q
    need_x_s, need_y_s, need_x_q, need_y_q, need_hyper = ctx.needs_input_grad[:5]
    needs = [need_x_s, need_y_s, need_x_q, need_hyper]
    x_s_bar = y_s_bar = x_q_bar = y_q_bar = hyper_bar = None
    if any(needs):
        x_s_bar, y_s_bar, x_q_bar, hyper_bar = _krr_backward_op(
            grad,
            x_s,
            y_s,
            x_q,
            residual,
            factor,
            coef,
            kept,
            aux,
            hyper,
            ctx.values,
            ctx.kernel,
            ctx.ridge,
            ctx.detach,
            needs,
        )
        # Each gradient gets its input's dtype: it is computed in the targets' dtype and rounded once.
        x_s_bar, x_q_bar = x_s_bar.to(x_s.dtype), x_q_bar.to(x_q.dtype)
    if need_y_q:
        y_q_bar = moving * (grad * (-2.0 / (residual.shape[-1] * residual.shape[-2])))[..., None, None]
    return (
        x_s_bar if need_x_s else None,
        y_s_bar if need_y_s else None,
        x_q_bar if need_x_q else None,
        y_q_bar,
        hyper_bar if need_hyper else None,
        *(None,) * 6,
    )


def _krr_backward(
    grad: Tensor,
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    residual: Tensor | None,
    factor: Tensor,
    coef: Tensor,
    kept: Tensor,
    aux: Tensor,
    hyper: Tensor | None,
    values: list[float],
    kernel: str,
    ridge: str,
    detach: bool,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    batch_shape, q = x_s.shape[:-2], x_q.shape[-2]
    batch = math.prod(batch_shape)
    problem = _problem(x_s, y_s, q, hyper, values, kernel, needs)
    picked = plan.choose(problem, gpu(x_s))
    need_x_s, need_y_s, need_x_q, need_hyper = needs

    def output(needed: bool, like: Tensor) -> Tensor:
        return y_s.new_empty(like.shape if needed else (0,))

    x_s_bar, y_s_bar, x_q_bar = output(need_x_s, x_s), output(need_y_s, y_s), output(need_x_q, x_q)
    hyper_bar = y_s.new_zeros(hyper.shape if need_hyper and hyper is not None else (0,))
    if batch:
        lanes = not x_s.is_cuda and plan.by_lanes(problem, batch)
        order = "low_rank" if lanes else picked.backward
        # K_qs has S columns; the parts of blocks of queries have more.
        parts = kept.shape[-2] if kept.shape[-1] != problem.s else 0
        shape = plan_shape(problem, batch, kernel, ridge, detach, order, picked.chunk, lanes=lanes, parts=parts)
        work = take_workspace(core.krr_workspace(shape, True, x_s.is_cuda), y_s)
        # The shapes decide whether the forward keeps K_qs. Stand-in rows are never read.
        has_kept = (parts or kept.shape[-2] > plan.STAND_IN) and not lanes
        core.krr_backward(
            shape,
            matrices(x_s),
            matrices(y_s),
            matrices(x_q),
            matrices(grad if residual is None else residual.contiguous()),
            None if residual is None else to_capsule(grad.reshape(-1, 1, 1)),
            to_capsule(factor.contiguous()),
            to_capsule(coef.contiguous()),
            to_capsule(kept.contiguous()) if has_kept else None,
            to_capsule(aux.contiguous()),
            hyper_rows(hyper),
            values,
            to_capsule(x_s_bar) if need_x_s else None,
            to_capsule(y_s_bar) if need_y_s else None,
            to_capsule(x_q_bar) if need_x_q else None,
            to_capsule(hyper_bar) if need_hyper else None,
            to_capsule(work),
            stream(x_s),
        )
        return_workspace(work)
    return x_s_bar, y_s_bar, x_q_bar, hyper_bar


def _krr_backward_fake(grad: Tensor, x_s: Tensor, y_s: Tensor, x_q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    hyper, needs = rest[5], rest[-1]
    outputs = [y_s.new_empty(t.shape if n else (0,)) for t, n in zip((x_s, y_s, x_q), needs[:3], strict=True)]
    return (*outputs, y_s.new_empty(hyper.shape if needs[3] and hyper is not None else (0,)))


_krr_op = register("krr", _krr, _krr_fake, differentiate, _krr_setup)


def _second_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, x_s, y_s, x_q, residual, factor, _, _, _, hyper, *ctx.options, ctx.needs = inputs
    ctx.save_for_backward(grad, x_s, y_s, x_q, residual, hyper, factor)
    ctx.set_materialize_grads(False)


def _second(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    *tensors, factor = saved_tensors(ctx)
    needed_bars = [bar for bar, needed in zip(bars, ctx.needs, strict=True) if needed]

    def first(*values: Any) -> tuple[Tensor, ...]:
        every = krr_gradients(*values, *ctx.options)
        return tuple(bar for bar, needed in zip(every, ctx.needs, strict=False) if needed)

    tensors[0] = mark_failed(tensors[0], factor)
    grad, x_s, y_s, x_q, residual, hyper = pull_back(first, tensors, needed_bars)
    return grad, x_s, y_s, x_q, residual, *(None,) * 4, hyper, *(None,) * 5


_krr_backward_op = register("krr_backward", _krr_backward, _krr_backward_fake, _second, _second_setup)


def _needs(*tensors: Tensor | None) -> list[bool]:
    grad = torch.is_grad_enabled()
    return [grad and t is not None and t.requires_grad for t in tensors]


def _call(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor | None,
    kernel: Kernel,
    ridge: Ridge,
    on_failure: str,
    watched: bool,
) -> Any:
    hyper, values = pack(kernel, ridge, x_s.shape[:-2], y_s.dtype, x_s.device)
    needs = [*_needs(x_s, y_s, x_q, hyper), watched]
    return _krr_op(x_s, y_s, x_q, y_q, hyper, values, kernel.spec, ridge.kind, ridge.detach, on_failure, needs)


def krr(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str, watched: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (predictions [..., Q, C], status, jitter, factor). Without ``watched`` the factor may not be written."""
    if kernel.name not in _DIRECT:
        return _other_form(x_s, y_s, x_q, None, kernel, ridge, on_failure, watched)
    r = _call(x_s, y_s, x_q, None, kernel, ridge, on_failure, watched)
    return r[0], r[7], r[6], r[2]


def krr_mse(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor,
    kernel: Kernel,
    ridge: Ridge,
    on_failure: str,
    watched: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (loss [...], status, jitter, factor). Without ``watched`` the factor may not be written."""
    if kernel.name not in _DIRECT:
        return _other_form(x_s, y_s, x_q, y_q, kernel, ridge, on_failure, watched)
    r = _call(x_s, y_s, x_q, y_q, kernel, ridge, on_failure, watched)
    return r[1], r[7], r[6], r[2]


# All others may have another form (simplify.py), or need float64.
_DIRECT = ("linear", "rbf")


def _other_form(
    x_s: Tensor,
    y_s: Tensor,
    x_q: Tensor,
    y_q: Tensor | None,
    kernel: Kernel,
    ridge: Ridge,
    on_failure: str,
    watched: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = y_s.dtype
    x_s, x_q = x_s.to(dtype), x_q.to(dtype)
    if is_composed(core_kernel(kernel)):
        with full_precision(x_s):
            return _of_gram(x_s, y_s, x_q, y_q, kernel, ridge, on_failure)
    features, kernel, ridge = simplify(kernel, ridge)
    if features is not None:
        x_s, x_q = features(x_s), features(x_q)
    if is_of_angles(kernel.spec) and dtype != torch.float64:
        x_s, y_s, x_q = x_s.double(), y_s.double(), x_q.double()
        y_q = None if y_q is None else y_q.double()
    r = _call(x_s, y_s, x_q, y_q, kernel, ridge, on_failure, watched)
    return r[0 if y_q is None else 1].to(dtype), r[7], r[6].to(dtype), r[2]


def _of_gram(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor | None, kernel: Kernel, ridge: Ridge, on_failure: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k_ss, ridge = gram(x_s, None, kernel), guarded(ridge, kernel.in_range())
    alpha, factor, status, jitter = factored_solve(k_ss, y_s, ridge, on_failure)
    p = matmul(gram(x_q, x_s, kernel), alpha)
    return (p if y_q is None else (p - y_q).square().mean((-2, -1))), status, jitter, factor


def explain(x_s: Tensor, y_s: Tensor, x_q: Tensor, kernel: Kernel, ridge: Ridge) -> str:
    """Describe the plan of both passes, for gradients to the support and, if x_q requires one, to the queries."""
    own = core_kernel(kernel)
    if is_composed(own):
        return f"dual, factor of order {x_s.shape[-2]}, Gram matrices of {' and '.join(map(repr, parts(own)))}"
    hyper, values = pack(own, ridge, x_s.shape[:-2], y_s.dtype, x_s.device)
    problem = _problem(x_s, y_s, x_q.shape[-2], hyper, values, own.spec, [True, True, x_q.requires_grad])
    kept = "kept" if problem.kept_queries else "not kept"
    return f"factor of order {problem.order}, K_qs {kept}; {plan.choose(problem, gpu(x_s))}"
