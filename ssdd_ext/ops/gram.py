"""The op `gram` and its backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import plan
from ..checks import full_precision, saved_tensors
from ..kernels import matmul
from .native import (
    core,
    hyper_rows,
    matrices,
    native_code,
    return_workspace,
    stream,
    take_workspace,
    to_capsule,
)
from .register import is_transformed, library, register

library.define("gram(Tensor x, Tensor? z, Tensor? hyper, float[] values, str kernel) -> Tensor")


def result_dtype(x: Tensor) -> torch.dtype:
    """Return float32 for 16-bit features, which the GPU's kernels read directly; otherwise the features' dtype."""
    return torch.float32 if x.element_size() == 2 else x.dtype


def forward(x: Tensor, z: Tensor | None, hyper: Tensor | None, values: list[float], kernel: str) -> Tensor:
    """Compute the Gram matrix by one call of the core."""
    s, d, q = x.shape[-2], x.shape[-1], (x if z is None else z).shape[-2]
    batch, threads = math.prod(x.shape[:-2]), torch.get_num_threads()
    k = x.new_empty(*x.shape[:-1], q, dtype=result_dtype(x))
    if k.numel():
        products = plan.gpu.by_products(batch, s, q, d)
        size = core.gram_workspace(*native_code(kernel), batch, s, q, d, threads, x.is_cuda, products)
        work = take_workspace(size, k)
        core.gram(
            matrices(x),
            matrices(z),
            hyper_rows(hyper),
            values,
            *native_code(kernel),
            to_capsule(k),
            to_capsule(work),
            batch,
            s,
            q,
            d,
            threads,
            stream(x),
            plan.gpu.HALVES,
            products,
        )
        return_workspace(work)
    return k


def _gram_fake(x: Tensor, z: Tensor | None, hyper: Tensor | None, values: list[float], kernel: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], (x if z is None else z).shape[-2], dtype=result_dtype(x))


def gram_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, z, hyper, ctx.values, ctx.kernel = inputs
    ctx.save_for_backward(x, z, hyper, output if ctx.kernel != "linear" else None)


# Up to this distance, in lengthscales, the float32 products below lose only two bits (csrc/krr.h).
_REACH = 16.0


def can_read(x: Tensor) -> bool:
    """Return True if the numbers of ``x`` can be read at no cost.

    Reading a GPU's would synchronise, and transforms and compilers have no values.
    """
    plain = x.is_cpu and type(x) is Tensor and not is_transformed() and not torch.compiler.is_compiling()
    return plain and not torch._C._len_torch_dispatch_stack()


def are_near(x: Tensor, z: Tensor, origin: Any, lengthscale: Tensor | float, most: float) -> bool:
    """Return True if all points are within ``most`` lengthscales of the origin. Their numbers are read."""
    if x.numel() == 0 or z.numel() == 0:
        return True
    with torch.no_grad():
        reach = torch.maximum(*((p - origin).abs().amax((-2, -1), keepdim=True) for p in (x, z)))
        return bool((reach * math.sqrt(x.shape[-1]) <= most * lengthscale).all())


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def has_float64(value: Tensor) -> bool:
    """Return True on every device except Apple's."""
    return value.device.type != "mps"


def gram_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    with full_precision(grad):
        return _gram_backward(ctx, grad)


def _gram_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # Plain products are differentiable, so the double backward of a Gram matrix works.
    x, z, hyper, k = saved_tensors(ctx)
    x_type, z_type = x.dtype, None if z is None else z.dtype
    x, z = x.to(grad.dtype), None if z is None else z.to(grad.dtype)
    other = x if z is None else z
    needs_x, needs_z, needs_hyper = ctx.needs_input_grad[:3]
    parameters = [p[..., None, None] for p in hyper.unbind(-1)] if hyper is not None else ctx.values
    grad_hyper = None
    if ctx.kernel == "linear":
        bar = grad + grad.mT if z is None else grad
        grad_x = parameters[0] * matmul(bar, other) if needs_x else None
        grad_z = parameters[0] * matmul(grad.mT, x) if needs_z else None
        if needs_hyper:
            scale_bar = (matmul(grad, other) * x).sum((-2, -1))
            columns = [scale_bar, grad.sum((-2, -1))]
    else:
        g = grad * k
        if z is None:
            g = without_diagonal(g + g.mT)
        over = parameters[0] ** -2
        # Only differences of points matter. Subtract one point, so that a large offset cancels before the products.
        origin = other[..., :1, :].detach() if other.shape[-2] else 0
        # Terms as large as the squared distances cancel in the products: float32 loses all digits for distant clusters.
        if (
            g.dtype == torch.float32
            and has_float64(g)
            and not (can_read(x) and are_near(x, other, origin, parameters[0], _REACH))
        ):
            g, x, other, origin, over = (_double(v) for v in (g, x, other, origin, over))
        x, other = x - origin, other - origin
        grad_x = over * (matmul(g, other) - g.sum(-1, keepdim=True) * x) if needs_x else None
        grad_z = over * (matmul(g.mT, x) - g.sum(-2).unsqueeze(-1) * other) if needs_z else None
        if needs_hyper:
            # k log k -> 0 if the kernel underflows.
            log_k = torch.where(k > 0, k, torch.ones_like(k)).log()
            columns = [(-2 * grad * k * log_k).sum((-2, -1)) / hyper[..., 0]]
    if needs_hyper:
        grad_hyper = torch.stack([*columns, *[torch.zeros_like(columns[0])] * (hyper.shape[-1] - len(columns))], -1)
    if grad_x is not None:
        grad_x = grad_x.to(x_type)
    if grad_z is not None:
        grad_z = grad_z.to(z_type)
    return grad_x, grad_z, grad_hyper, None, None


def without_diagonal(g: Tensor) -> Tensor:
    """Return g with zeros on its diagonal. A point's distance from itself is constant: its terms in the two products
    below are equal, and where all other points are far away, rounding them would leave more than the gradient."""
    return g.masked_fill(torch.eye(g.shape[-1], dtype=torch.bool, device=g.device), 0)


def squares_backward(
    grad: Tensor, x: Tensor, z: Tensor | None, needs_x: bool, needs_z: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of |x - z|^2 to x and z, times ``grad / 2``, by differentiable products; z=None means x."""
    dtype = x.dtype
    if dtype == torch.float32 and has_float64(x):
        grad, x, z = grad.double(), x.double(), None if z is None else z.double()
    other = x if z is None else z
    # Only differences of points matter. Subtract one point, so that a large offset cancels before the products.
    origin = other[..., :1, :].detach() if other.shape[-2] else 0
    if z is None:
        grad = without_diagonal(grad + grad.mT)
    x, other = x - origin, other - origin
    x_bar = (grad.sum(-1, keepdim=True) * x - matmul(grad, other)).to(dtype) if needs_x else None
    z_bar = (grad.sum(-2).unsqueeze(-1) * other - matmul(grad.mT, x)).to(dtype) if needs_z else None
    return x_bar, z_bar


run_gram = register("gram", forward, _gram_fake, gram_backward, gram_setup)
