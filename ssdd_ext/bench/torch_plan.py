"""The same orders of work as the native core's, in PyTorch calls: how far PyTorch itself can be taken.

One factorisation, a hand-written backward, K_ss as panels of one triangle, and the cheapest of dual dense, dual low
rank and primal by FLOPs. It is a yardstick of the benchmark, so it does what the benchmark needs and no more.
The formulas are those of the native core: alpha = (K_ss + lambda I)^-1 Y_s, and in the backward U = (..)^-1 alpha_bar.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from .problem import Problem

# Rows of a panel of the Gram matrix: large enough for full-speed products, small enough to save most of the half.
PANEL = 256
# To y_s, x_s, x_q: what each backward below returns.
Gradients = tuple[Tensor, Tensor | None, Tensor | None]


def flops(problem: Problem) -> dict[tuple[str, str], int]:
    """FLOPs of every legal (forward, backward) pair for one problem; the factorisation and solves included."""
    s, q, d, c = problem.s, problem.q, problem.d, problem.c
    grad_x = "x_s" in problem.backward
    table = {}
    for forward, backward in product(("dense", "low_rank"), repeat=2):
        total = s * s * d + s**3 // 3 + 8 * s * s * c
        total += 2 * q * s * (d + c) if forward == "dense" else 2 * c * d * (s + q)
        total += 2 * q * s * c if forward == "dense" else 2 * c * d * (s + q)  # alpha_bar
        if grad_x and backward == "dense":
            total += 2 * s * (s + q) * (d + c) + 2 * s * s * c
        elif grad_x:
            total += 6 * s * c * d + (2 * c * d * (s + q) if forward == "dense" else 0)
        table[forward, backward] = total
    if problem.kernel == "linear" and d < s:
        width = d + (problem.bias != 0)
        total = s * width**2 + width**3 // 3 + 8 * width**2 * c + 4 * c * width * (s + q)
        table["primal", "primal"] = total + 4 * s * c * width + 4 * s * c * d * grad_x
    return table if problem.kernel == "linear" else {("dense", "dense"): table["dense", "dense"]}


def choose(problem: Problem) -> tuple[str, str]:
    """The (forward, backward) pair with the fewest FLOPs."""
    table = flops(problem)
    return min(table, key=lambda plan: table[plan])


def triangle_of_products(x: Tensor, border: int = 0) -> Tensor:
    """X X^T of x [..., S, D] in [..., S + border, S + border], of which only the lower triangle need be right."""
    s = x.shape[-2]
    out = x.new_empty(*x.shape[:-2], s + border, s + border)
    if x.dim() > 2 or s < 2 * PANEL:
        # A batch is one call; splitting it would cost more than the half it saves.
        out[..., :s, :s] = x @ x.mT
        return out
    for start in range(0, s, PANEL):
        stop = min(start + PANEL, s)
        torch.mm(x[start:stop], x[:stop].mT, out=out[start:stop, :stop])
    return out


def rbf_gram(x: Tensor, z: Tensor, length: float) -> Tensor:
    """exp(-|x - z|^2 / 2 l^2) [..., S, Q] through one product; callers centre x and z, so little cancels."""
    squares = (x * x).sum(-1)[..., :, None] + (z * z).sum(-1)[..., None, :]
    return squares.sub_(x @ z.mT, alpha=2).clamp_(min=0).mul_(-0.5 / length**2).exp_()


def rbf_pullback(weighted: Tensor, x: Tensor, z: Tensor, length: float) -> Tensor:
    """Gradient to x of sum(K_bar * K), ``weighted`` = K_bar * K [..., S, Q]."""
    return (weighted @ z).sub_(weighted.sum(-1, keepdim=True) * x).div_(length**2)


class PlannedKrr(torch.autograd.Function):
    """Sum over the batch of the mean squared error of a KRR problem, [] of x_s, y_s, x_q, y_q."""

    @staticmethod
    def forward(ctx: Any, x_s: Tensor, y_s: Tensor, x_q: Tensor, y_q: Tensor, problem: Problem) -> Tensor:
        ctx.problem, ctx.plan = problem, choose(problem)
        work = torch.float64 if x_s.dtype == torch.float64 else torch.float32
        ctx.feature_dtype = x_s.dtype
        x_s, x_q = x_s.to(work), x_q.to(work)
        if problem.kernel == "rbf":
            centre = x_s.mean(-2, keepdim=True)
            x_s, x_q = x_s - centre, x_q - centre
        bias, keep = problem.bias, None  # keep: the K_ss that an RBF's backward needs
        if ctx.plan[0] == "primal":
            border = int(bias != 0)
            a = triangle_of_products(x_s.mT, border)
            right = torch.cat((x_s.mT @ y_s, bias**0.5 * y_s.sum(-2, keepdim=True)), -2) if border else x_s.mT @ y_s
            trace = x_s.square().sum((-2, -1)) + bias * problem.s
            if border:
                a[..., -1, :-1] = bias**0.5 * x_s.sum(-2)
                a[..., -1, -1] = bias * problem.s
        else:
            if problem.kernel == "rbf":
                keep = rbf_gram(x_s, x_s, problem.length)
                keep.diagonal(dim1=-2, dim2=-1).fill_(1)
                a = keep.clone()
            else:
                a = triangle_of_products(x_s)
                if bias:
                    a.add_(bias)
            right = y_s
            trace = a.diagonal(dim1=-2, dim2=-1).sum(-1)
        ridge = problem.ridge * {"absolute": torch.ones_like(trace), "trace": trace}.get(
            problem.ridge_kind, trace / problem.s
        )
        a.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
        factor = torch.linalg.cholesky_ex(a).L
        del a
        alpha = torch.cholesky_solve(right, factor)  # the primal weights w where the plan is primal
        if ctx.plan[0] == "primal":
            middle = alpha[..., : problem.d, :]
            p = x_q @ middle
            if bias:
                p.add_(alpha[..., -1:, :], alpha=bias**0.5)
        elif problem.kernel == "rbf":
            middle = rbf_gram(x_q, x_s, problem.length)
            p = middle @ alpha
        elif ctx.plan[0] == "dense":
            middle = x_q @ x_s.mT
            p = (middle.add_(bias) if bias else middle) @ alpha
        else:
            middle = alpha.mT @ x_s
            p = x_q @ middle.mT
            if bias:
                p.add_(alpha.sum(-2, keepdim=True), alpha=bias)
        residual = p.sub_(y_q)
        ctx.save_for_backward(x_s, y_s, x_q, factor, alpha, middle, residual, keep)
        return residual.square().sum() / (problem.q * problem.c)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        problem, residual = ctx.problem, ctx.saved_tensors[6]
        p_bar = residual * (grads[0] * 2 / (problem.q * problem.c))
        step = _primal if ctx.plan[0] == "primal" else _rbf if problem.kernel == "rbf" else _dual
        y_bar, x_s_bar, x_q_bar = step(ctx, p_bar)
        return (
            None if x_s_bar is None else x_s_bar.to(ctx.feature_dtype),
            y_bar if ctx.needs_input_grad[1] else None,
            None if x_q_bar is None else x_q_bar.to(ctx.feature_dtype),
            -p_bar if ctx.needs_input_grad[3] else None,
            None,
        )


def _trace_term(problem: Problem, inner: Tensor) -> Tensor | float:
    """2 c lambda_bar [..., 1, 1] of the linear kernel, ``inner`` = -lambda_bar [...]: zero where it is detached."""
    if problem.ridge_kind != "mean_trace":
        return 0.0
    return (-2 * problem.ridge / problem.s * inner)[..., None, None]


def _primal(ctx: Any, p_bar: Tensor) -> Gradients:
    problem, root = ctx.problem, ctx.problem.bias**0.5
    x_s, y_s, x_q, factor, w, middle, _, _ = ctx.saved_tensors
    right = x_q.mT @ p_bar
    if root:
        right = torch.cat((right, root * p_bar.sum(-2, keepdim=True)), -2)
    v = torch.cholesky_solve(right, factor)
    u, fitted = x_s @ v[..., : problem.d, :], x_s @ middle
    if root:
        u.add_(v[..., -1:, :], alpha=root)
        fitted.add_(w[..., -1:, :], alpha=root)
    x_s_bar = None
    if ctx.needs_input_grad[0]:
        left, right = torch.cat((y_s - fitted, -u), -1), torch.cat((v, w), -1)[..., : problem.d, :]
        x_s_bar = left @ right.mT
        term = _trace_term(problem, (v * w).sum((-2, -1)))
        x_s_bar = x_s_bar + term * x_s if isinstance(term, Tensor) else x_s_bar
    return u, x_s_bar, p_bar @ middle.mT if ctx.needs_input_grad[2] else None


def _dual(ctx: Any, p_bar: Tensor) -> Gradients:
    problem, (forward, backward) = ctx.problem, ctx.plan
    x_s, _, x_q, factor, alpha, middle, _, _ = ctx.saved_tensors
    low = forward == "low_rank" or (backward == "low_rank" and ctx.needs_input_grad[0])
    m = p_bar.mT @ x_q if low else p_bar
    if forward == "dense":
        alpha_bar = middle.mT @ p_bar
    else:
        alpha_bar = x_s @ m.mT
        if problem.bias:
            alpha_bar.add_(p_bar.sum(-2, keepdim=True), alpha=problem.bias)
    u = torch.cholesky_solve(alpha_bar, factor)
    w = middle if forward == "low_rank" else None
    x_s_bar = x_q_bar = None
    if ctx.needs_input_grad[0]:
        if backward == "dense":
            x_s_bar = (alpha @ p_bar.mT) @ x_q
            both = u @ alpha.mT
            x_s_bar.sub_((both + both.mT) @ x_s)
        else:
            w = alpha.mT @ x_s if w is None else w
            x_s_bar = torch.cat((alpha, -u), -1) @ torch.cat((m - u.mT @ x_s, w), -2)
        term = _trace_term(problem, (u * alpha).sum((-2, -1)))
        x_s_bar = x_s_bar + term * x_s if isinstance(term, Tensor) else x_s_bar
    if ctx.needs_input_grad[2]:
        x_q_bar = p_bar @ (alpha.mT @ x_s if w is None else w)
    return u, x_s_bar, x_q_bar


def _rbf(ctx: Any, p_bar: Tensor) -> Gradients:
    length = ctx.problem.length
    x_s, _, x_q, factor, alpha, k_qs, _, k_ss = ctx.saved_tensors
    u = torch.cholesky_solve(k_qs.mT @ p_bar, factor)
    x_s_bar = x_q_bar = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
        cross = (p_bar @ alpha.mT).mul_(k_qs)
    if ctx.needs_input_grad[0]:
        both = u @ alpha.mT
        # The trace of an RBF Gram matrix is a constant, so an attached trace adds nothing.
        inner = (both + both.mT).mul_(k_ss).neg_()
        x_s_bar = rbf_pullback(cross.mT, x_s, x_q, length).add_(rbf_pullback(inner, x_s, x_s, length))
    if ctx.needs_input_grad[2]:
        x_q_bar = rbf_pullback(cross, x_q, x_s, length)
    return u, x_s_bar, x_q_bar
