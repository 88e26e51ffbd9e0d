"""The registered ops: each picks its plan, allocates outputs and workspace, and calls the native core once.

Six ops under ``torch.ops.ssdd_ext``: gram, cholesky, solve, solve_backward, krr, krr_backward. All take equal batch
shapes (the public calls broadcast) and are functional. Their outputs' shapes are rules of the inputs' shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _C, checks, plan
from .kernels import KERNELS, Kernel
from .ridge import KINDS, Ridge

_KERNEL_CODES = {"linear": 0, "rbf": 1}
_lib = torch.library.Library("ssdd_ext", "DEF")
_to_capsule = torch.utils.dlpack.to_dlpack


def unavailable(device: torch.device, kernel: Kernel) -> str | None:
    """Why the native core cannot run here, or None."""
    if kernel.name not in _KERNEL_CODES:
        return f"it has no native epilogue for {type(kernel).__name__}"
    if device.type == "cpu" or (device.type == "cuda" and _C.build_info()["cuda"]):
        return None
    if device.type == "cuda":
        return "this build has no CUDA kernels (built with CUDA=OFF, or no nvcc was found)"
    return f"it runs on cpu and cuda tensors, not on {device.type}"


def _capsule(value: Tensor | None) -> Any:
    return None if value is None else _to_capsule(value)


def _matrices(value: Tensor | None) -> Any:
    """[..., r, c] as a capsule of 2 or 3 dimensions; more batch dimensions are flattened (a copy if they must)."""
    if value is None:
        return None
    if value.dim() > 3:
        value = value.reshape(-1, *value.shape[-2:])
    return _to_capsule(value)


def _hyper(value: Tensor | None) -> Any:
    return None if value is None else _to_capsule(value.contiguous().view(-1, 1, value.shape[-1]))


def _stream(value: Tensor) -> int:
    return torch.cuda.current_stream(value.device).cuda_stream if value.is_cuda else 0


def _fill(op: str, status: Tensor, on_failure: str, size: int, ridge: Any) -> None:
    if on_failure == "raise":
        checks.raise_on_failure(op, status, size, ridge)


def _code(on_failure: str) -> int:
    return 1 if on_failure == "jitter" else 0


# --- gram -----------------------------------------------------------------------------------------------------------

_lib.define("gram(Tensor x, Tensor? z, Tensor? hyper, float[] values, str kernel) -> Tensor")


def _gram(x: Tensor, z: Tensor | None, hyper: Tensor | None, values: list[float], kernel: str) -> Tensor:
    s, d, q = x.shape[-2], x.shape[-1], (x if z is None else z).shape[-2]
    batch, threads = math.prod(x.shape[:-2]), torch.get_num_threads()
    k = x.new_empty(*x.shape[:-1], q)
    work = x.new_empty(_C.gram_workspace(batch, s, q, threads))
    if k.numel():
        _C.gram(
            _matrices(x), _matrices(z), _hyper(hyper), values, _KERNEL_CODES[kernel], _to_capsule(k), _to_capsule(work),
            batch, s, q, d, threads, _stream(x),
        )  # fmt: skip
    return k


def _gram_fake(x: Tensor, z: Tensor | None, hyper: Tensor | None, values: list[float], kernel: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], (x if z is None else z).shape[-2])


def _gram_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, z, hyper, ctx.values, ctx.kernel = inputs
    ctx.save_for_backward(x, z, hyper, output if ctx.kernel != "linear" else None)


def _gram_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # Plain products, differentiable themselves: double backward of a Gram matrix works.
    x, z, hyper, k = ctx.saved_tensors
    other = x if z is None else z
    needs_x, needs_z, needs_hyper = ctx.needs_input_grad[:3]
    parameters = [p[..., None, None] for p in hyper.unbind(-1)] if hyper is not None else ctx.values
    grad_hyper = None
    if ctx.kernel == "linear":
        bar = grad + grad.mT if z is None else grad
        grad_x = parameters[0] * (bar @ other) if needs_x else None
        grad_z = parameters[0] * (grad.mT @ x) if needs_z else None
        if needs_hyper:
            scale_bar = ((grad @ other) * x).sum((-2, -1))
            columns = [scale_bar, grad.sum((-2, -1))]
    else:
        g = grad * k
        if z is None:
            g = g + g.mT
        over = parameters[0] ** -2
        grad_x = over * (g @ other - g.sum(-1, keepdim=True) * x) if needs_x else None
        grad_z = over * (g.mT @ x - g.sum(-2).unsqueeze(-1) * z) if needs_z else None
        if needs_hyper:
            # k log k -> 0 where the kernel underflows.
            log_k = torch.where(k > 0, k, torch.ones_like(k)).log()
            columns = [(-2 * grad * k * log_k).sum((-2, -1)) / hyper[..., 0]]
    if needs_hyper:
        grad_hyper = torch.stack([*columns, *[torch.zeros_like(columns[0])] * (hyper.shape[-1] - len(columns))], -1)
    return grad_x, grad_z, grad_hyper, None, None


# --- cholesky and solve ---------------------------------------------------------------------------------------------

_lib.define("cholesky(Tensor a, str on_failure) -> (Tensor, Tensor, Tensor)")
_lib.define(
    "solve(Tensor a, Tensor y, Tensor? hyper, float[] values, str ridge, bool detach, str on_failure)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_lib.define(
    "solve_backward(Tensor grad, Tensor factor, Tensor x, Tensor aux, Tensor? hyper, float[] values, str ridge,"
    " bool detach, bool[] needs) -> (Tensor, Tensor, Tensor)"
)


def _factor(
    a: Tensor, y: Tensor | None, hyper: Tensor | None, values: list[float], ridge: str, on_failure: str
) -> tuple[Tensor, ...]:
    batch_shape, s, c = a.shape[:-2], a.shape[-1], 0 if y is None else y.shape[-1]
    batch, threads = math.prod(batch_shape), torch.get_num_threads()
    factor, x = a.new_empty(a.shape), None if y is None else y.new_empty(y.shape)
    status = torch.zeros(batch_shape, dtype=torch.int32, device=a.device)
    jitter, aux = a.new_zeros(batch_shape), a.new_zeros(*batch_shape, 3)
    if batch and s:
        work = a.new_empty(_C.cholesky_workspace(batch, s, c, threads))
        _C.solve(
            _matrices(a), _matrices(y), _hyper(hyper), values, max(0, KINDS.index(ridge) if ridge else 0),
            _code(on_failure), _to_capsule(factor), _capsule(x), _to_capsule(status), _to_capsule(jitter),
            _to_capsule(aux), _to_capsule(work), batch, s, c, threads, _stream(a),
        )  # fmt: skip
    return x, factor, status, jitter, aux  # type: ignore[return-value]


def _cholesky(a: Tensor, on_failure: str) -> tuple[Tensor, Tensor, Tensor]:
    _, factor, status, jitter, _ = _factor(a, None, None, [], "", on_failure)
    _fill("cholesky", status, on_failure, a.shape[-1], None)
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
    _fill("cholesky_solve", status, on_failure, a.shape[-1], _ridge_text(ridge, hyper, values))
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
    a_bar, y_bar, hyper_bar = torch.ops.ssdd_ext.solve_backward(
        grad, factor, x, aux, hyper, ctx.values, ctx.ridge, ctx.detach, needs
    )
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
        work = x.new_empty(_C.cholesky_workspace(batch, s, c, threads))
        _C.solve_backward(
            _matrices(grad), _to_capsule(factor.contiguous()), _to_capsule(x.contiguous()),
            _to_capsule(aux.contiguous()), _hyper(hyper), values, max(0, KINDS.index(ridge) if ridge else 0), detach,
            _to_capsule(a_bar) if needs[0] else None, _to_capsule(y_bar), _capsule(v_bar), _to_capsule(work),
            batch, s, c, threads, _stream(x),
        )  # fmt: skip
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


# --- krr ------------------------------------------------------------------------------------------------------------

_lib.define(
    "krr(Tensor x_s, Tensor y_s, Tensor x_q, Tensor? y_q, Tensor? hyper, float[] values, str kernel, str ridge,"
    " bool detach, str on_failure, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_lib.define(
    "krr_backward(Tensor grad, Tensor x_s, Tensor y_s, Tensor x_q, Tensor? residual, Tensor factor, Tensor coef,"
    " Tensor kept, Tensor aux, Tensor? hyper, float[] values, str kernel, str ridge, bool detach, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


def _bordered(linear: bool, hyper: Tensor | None, values: list[float]) -> bool:
    # A bias that is a tensor may be anything, so it gets its row; a number may be known to be 0.
    return linear and (hyper is not None or values[1] != 0)


def _problem(
    x_s: Tensor, c: int, q: int, hyper: Tensor | None, values: list[float], kernel: str, needs: list[bool]
) -> plan.Problem:
    linear = KERNELS[kernel].linear
    return plan.Problem(
        x_s.shape[-2], q, x_s.shape[-1], c, linear, _bordered(linear, hyper, values), x_s.element_size(),
        needs[0], needs[2],
    )  # fmt: skip


def _shape(p: plan.Problem, batch: int, kernel: str, ridge: str, detach: bool, which: str, chunk: int) -> list[int]:
    bordered = p.bordered and which == "primal"
    n = p.d + bordered if which == "primal" else p.s
    return [
        batch, p.s, p.q, p.d, p.c, n, _KERNEL_CODES[kernel], KINDS.index(ridge), int(detach), int(bordered),
        plan.CODES[which], chunk, torch.get_num_threads(),
    ]  # fmt: skip


def _kept_rows(x_s: Tensor, q: int, c: int, hyper: Tensor | None, values: list[float], kernel: str) -> int:
    linear = KERNELS[kernel].linear
    s, d = x_s.shape[-2], x_s.shape[-1]
    return plan.kept_queries(s, q, d, c, linear, _bordered(linear, hyper, values), x_s.element_size())


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
    problem = _problem(x_s, c, q, hyper, values, kernel, needs)
    picked = plan.choose(problem)
    n = plan.order(problem.s, problem.d, problem.linear, problem.bordered)
    keeps = any(needs) and picked.forward == "dense"  # always dense where rows are kept, unless a test forces another
    rows = _kept_rows(x_s, q, c, hyper, values, kernel) if keeps else 0
    out = x_s.new_empty(*batch_shape, q, c)
    loss = x_s.new_empty(batch_shape if y_q is not None else (0,))
    factor, coef = x_s.new_empty(*batch_shape, n, n), x_s.new_empty(*batch_shape, n, c)
    kept = x_s.new_empty(*batch_shape, rows, problem.s)
    aux, jitter = x_s.new_empty(*batch_shape, 3), x_s.new_empty(batch_shape)
    status = torch.empty(batch_shape, dtype=torch.int32, device=x_s.device)
    if batch:
        shape = _shape(problem, batch, kernel, ridge, detach, picked.forward, picked.chunk)
        work = x_s.new_empty(_C.krr_workspace(shape, False))
        _C.krr_forward(
            shape, _matrices(x_s), _matrices(y_s), _matrices(x_q), _matrices(y_q), _hyper(hyper), values,
            _code(on_failure), _to_capsule(out), _to_capsule(loss) if y_q is not None else None, _to_capsule(factor),
            _to_capsule(coef), _to_capsule(kept) if rows and picked.forward == "dense" else None, _to_capsule(aux),
            _to_capsule(jitter), _to_capsule(status), _to_capsule(work), _stream(x_s),
        )  # fmt: skip
        _fill("krr" if y_q is None else "krr_mse", status, on_failure, n, _ridge_text(ridge, hyper, values))
    return out, loss, factor, coef, kept, aux, jitter, status


def _ridge_text(ridge: str, hyper: Tensor | None, values: list[float]) -> str:
    value = "a tensor" if hyper is not None else f"{values[-1]:g}" if values else "0"
    return f"Ridge.{ridge}({value})" if ridge else "none"


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
    linear = KERNELS[kernel].linear
    n = plan.order(s, x_s.shape[-1], linear, _bordered(linear, hyper, values))
    rows = _kept_rows(x_s, q, c, hyper, values, kernel) if any(needs) else 0
    return (
        x_s.new_empty(*batch, q, c),
        x_s.new_empty(batch if y_q is not None else (0,)),
        x_s.new_empty(*batch, n, n),
        x_s.new_empty(*batch, n, c),
        x_s.new_empty(*batch, rows, s),
        x_s.new_empty(*batch, 3),
        x_s.new_empty(batch),
        x_s.new_empty(batch, dtype=torch.int32),
    )


def _krr_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_s, y_s, x_q, y_q, hyper, ctx.values, ctx.kernel, ctx.ridge, ctx.detach, _, _ = inputs
    out, loss, factor, coef, kept, aux, jitter, status = output
    ctx.mse = y_q is not None
    ctx.save_for_backward(x_s, y_s, x_q, hyper, out if ctx.mse else None, factor, coef, kept, aux)
    ctx.mark_non_differentiable(factor, coef, kept, aux, jitter, status, out if ctx.mse else loss)
    ctx.set_materialize_grads(False)


def _krr_autograd(ctx: Any, grad_out: Tensor | None, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    grad = grad_loss if ctx.mse else grad_out
    if grad is None:
        return (None,) * 11
    x_s, y_s, x_q, hyper, residual, factor, coef, kept, aux = ctx.saved_tensors
    need_x_s, need_y_s, need_x_q, need_y_q, need_hyper = ctx.needs_input_grad[:5]
    needs = [need_x_s, need_y_s, need_x_q, need_hyper]
    x_s_bar = y_s_bar = x_q_bar = y_q_bar = hyper_bar = None
    if any(needs):
        x_s_bar, y_s_bar, x_q_bar, hyper_bar = torch.ops.ssdd_ext.krr_backward(
            grad, x_s, y_s, x_q, residual, factor, coef, kept, aux, hyper, ctx.values, ctx.kernel, ctx.ridge,
            ctx.detach, needs,
        )  # fmt: skip
    if need_y_q:
        y_q_bar = residual * (grad * (-2.0 / (residual.shape[-1] * residual.shape[-2])))[..., None, None]
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
    batch_shape, c, q = x_s.shape[:-2], y_s.shape[-1], x_q.shape[-2]
    batch = math.prod(batch_shape)
    problem = _problem(x_s, c, q, hyper, values, kernel, needs)
    picked = plan.choose(problem)
    need_x_s, need_y_s, need_x_q, need_hyper = needs

    def output(needed: bool, like: Tensor) -> Tensor:
        return x_s.new_empty(like.shape if needed else (0,))

    x_s_bar, y_s_bar, x_q_bar = output(need_x_s, x_s), output(need_y_s, y_s), output(need_x_q, x_q)
    hyper_bar = x_s.new_zeros(hyper.shape if need_hyper and hyper is not None else (0,))
    if batch:
        shape = _shape(problem, batch, kernel, ridge, detach, picked.backward, picked.chunk)
        work = x_s.new_empty(_C.krr_workspace(shape, True))
        has_kept = kept.shape[-2] > 0 and picked.forward == "dense"
        _C.krr_backward(
            shape, _matrices(x_s), _matrices(y_s), _matrices(x_q),
            _matrices(grad if residual is None else residual.contiguous()),
            None if residual is None else _to_capsule(grad.reshape(-1, 1, 1)), _to_capsule(factor.contiguous()),
            _to_capsule(coef.contiguous()), _to_capsule(kept.contiguous()) if has_kept else None,
            _to_capsule(aux.contiguous()), _hyper(hyper), values, _to_capsule(x_s_bar) if need_x_s else None,
            _to_capsule(y_s_bar) if need_y_s else None, _to_capsule(x_q_bar) if need_x_q else None,
            _to_capsule(hyper_bar) if need_hyper else None, _to_capsule(work), _stream(x_s),
        )  # fmt: skip
    return x_s_bar, y_s_bar, x_q_bar, hyper_bar


def _krr_backward_fake(grad: Tensor, x_s: Tensor, y_s: Tensor, x_q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    hyper, needs = rest[5], rest[-1]
    outputs = [x_s.new_empty(t.shape if n else (0,)) for t, n in zip((x_s, y_s, x_q), needs[:3], strict=True)]
    return (*outputs, x_s.new_empty(hyper.shape if needs[3] and hyper is not None else (0,)))


# --- registration ---------------------------------------------------------------------------------------------------


def _refuse_double(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"ssdd_ext: double backward through the native {name} is not implemented; pass backend='torch', whose "
            f"gradients are differentiable any number of times"
        )

    return refuse


def _vmap_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    """Every op takes leading batch dimensions: move the mapped one to the front, expand what is not mapped."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        moved = [
            arg
            if not isinstance(arg, Tensor)
            else arg.movedim(dim, 0)
            if dim is not None
            else arg.expand(info.batch_size, *arg.shape)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        result = op(*moved)
        return result, (0,) * len(result) if isinstance(result, tuple) else 0

    return rule


def _register(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., Any] | None = None,
) -> None:
    qualified = f"ssdd_ext::{name}"
    for key in ("CPU", "CUDA"):
        _lib.impl(name, implementation, key)
    torch.library.register_fake(qualified, fake, lib=_lib)
    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_lib)
    torch.library.register_vmap(qualified, _vmap_rule(getattr(torch.ops.ssdd_ext, name)), lib=_lib)


_register("gram", _gram, _gram_fake, _gram_backward, _gram_setup)
_register("cholesky", _cholesky, _cholesky_fake, _cholesky_backward, _cholesky_setup)
_register("solve", _solve, _solve_fake, _solve_autograd, _solve_setup)
_register("solve_backward", _solve_backward, _solve_backward_fake, _refuse_double("cholesky_solve"))
_register("krr", _krr, _krr_fake, _krr_autograd, _krr_setup)
_register("krr_backward", _krr_backward, _krr_backward_fake, _refuse_double("krr"))

gram = torch.ops.ssdd_ext.gram.default
cholesky = torch.ops.ssdd_ext.cholesky.default
_solve_op = torch.ops.ssdd_ext.solve.default
_krr_op = torch.ops.ssdd_ext.krr.default


def solve(
    a: Tensor, y: Tensor, hyper: Tensor | None, values: list[float], ridge: Ridge | None, on_failure: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, factor, status, jitter) of (A + lambda I) x = y."""
    kind, detach = ("", False) if ridge is None else (ridge.kind, ridge.detach)
    x, factor, status, jitter, _ = _solve_op(
        a, y, hyper if kind else None, values[-1:] if kind and hyper is None else values if kind else [], kind, detach,
        on_failure,
    )  # fmt: skip
    return x, factor, status, jitter


def _needs(*tensors: Tensor | None) -> list[bool]:
    grad = torch.is_grad_enabled()
    return [grad and t is not None and t.requires_grad for t in tensors]


def krr(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, hyper: Tensor | None, values: list[float], kernel: str, ridge: Ridge,
    on_failure: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(predictions, status, jitter)."""
    r = _krr_op(
        x_s, y_s, x_q, None, hyper, values, kernel, ridge.kind, ridge.detach, on_failure, _needs(x_s, y_s, x_q, hyper)
    )
    return r[0], r[7], r[6]


def krr_mse(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, hyper: Tensor | None, values: list[float], kernel: str,
    ridge: Ridge, on_failure: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, status, jitter)."""
    r = _krr_op(
        x_s, y_s, x_q, y_q, hyper, values, kernel, ridge.kind, ridge.detach, on_failure, _needs(x_s, y_s, x_q, hyper)
    )
    return r[1], r[7], r[6]


def explain(
    x_s: Tensor, y_s: Tensor, x_q: Tensor, hyper: Tensor | None, values: list[float], kernel: str
) -> str:
    problem = _problem(x_s, y_s.shape[-1], x_q.shape[-2], hyper, values, kernel, [True, True, x_q.requires_grad])
    n = plan.order(problem.s, problem.d, problem.linear, problem.bordered)
    kept = _kept_rows(x_s, problem.q, problem.c, hyper, values, kernel)
    return f"native, factor of order {n}, K_qs {'kept' if kept else 'not kept'}; {plan.choose(problem)}"


def build_info() -> dict[str, Any]:
    return dict(_C.build_info())
