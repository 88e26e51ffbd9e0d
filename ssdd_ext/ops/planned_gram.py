"""Gram matrices in planned PyTorch: forward and backward by products, without an S x Q x D array."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..kernels import RBF, Combination, Kernel, Laplace, Stationary, for_matrices, match_parameter, one_norms
from ..reference import gram as reference_gram
from .gram import are_near, can_read, gram_backward, gram_setup, has_float64, squares_backward
from .hyper import pack
from .register import is_batched, is_plain_call, vmap_rule

_FAR = 1e4
"""Distance in lengthscales from which float64 products lose digits that float32 points have."""

_ROWS = 256
"""Rows and columns at a time of the gradient of 1-norms: torch.cdist adds so many terms one after the other."""


class BatchedFunction(torch.autograd.Function):
    """A Function of problems with leading batch dimensions, which all outputs have too."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_rule(cls.apply)(info, in_dims, *args)


def _squared_distances(x: Tensor, z: Tensor, by_products: bool = True) -> Tensor:
    """Return [..., S, Q] of x [..., S, D] and z [..., Q, D].

    For float32 points, products in float64 have far smaller rounding errors than float32 itself. float64 points, and
    devices without float64, use sums of squared differences.
    """
    if not by_products or x.dtype == torch.float64 or not has_float64(x):
        return torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    x, z = x.double(), z.double()
    origin = z[..., :1, :] if z.shape[-2] else 0
    x, z = x - origin, z - origin
    squares = x.square().sum(-1)[..., :, None] + z.square().sum(-1)[..., None, :]
    return (squares - 2 * (x @ z.mT)).clamp_(min=0)


def _products_suffice(x: Tensor, z: Tensor, lengthscale: Tensor | float) -> bool:
    """Return False if the points are known to be so far apart that products lose digits of the small distances."""
    if not can_read(x) or not z.shape[-2]:
        return True
    return are_near(x, z, z[..., :1, :].detach(), lengthscale, _FAR)


class _Rbf(BatchedFunction):
    """Computes exp(-|x - z|^2 / (2 lengthscale^2)), with the arguments and the backward of the op `gram`."""

    @staticmethod
    def forward(x: Tensor, z: Tensor | None, hyper: Tensor | None, values: list[float], kernel: str) -> Tensor:
        lengthscale = values[0] if hyper is None else hyper[..., 0, None, None]
        other = x if z is None else z
        by_products = _products_suffice(x, other, lengthscale)
        k = torch.exp(_squared_distances(x, other, by_products) * (-0.5 * lengthscale**-2)).to(x.dtype)
        if z is None:
            k.diagonal(dim1=-2, dim2=-1).fill_(1)
        return k

    setup_context = staticmethod(gram_setup)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with checks.full_precision(grad):
            return gram_backward(ctx, grad)


class _Squares(BatchedFunction):
    """Computes |x - z|^2 [..., S, Q], without an [S, Q, D] array in either pass; z=None stands for x.

    ``by_products=False`` is for a kernel with a cusp at distance 0, which contains the root of a rounding error.
    """

    @staticmethod
    def forward(x: Tensor, z: Tensor | None, by_products: bool) -> Tensor:
        squares = _squared_distances(x, x if z is None else z, by_products).to(x.dtype)
        if z is None:
            squares.diagonal(dim1=-2, dim2=-1).zero_()
        return squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, z = checks.saved_tensors(ctx)
        with checks.full_precision(grad):
            x_bar, z_bar = squares_backward(2 * grad, x, z, ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        return x_bar, z_bar, None


class _OneNorms(torch.autograd.Function):
    """Computes |x - z|_1 [..., S, Q] by torch.cdist, without an [S, Q, D] array; z=None stands for x.

    It is for plain tensors on the CPU. torch.cdist has no second derivative, so a backward that is itself
    differentiated is that of the formula. In float32, torch.cdist has an error of tens of roundoffs and takes as long
    as in float64; its backward takes half as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, z)
        return torch.cdist(x.double(), (x if z is None else z).double(), p=1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, z = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batched(grad) or not is_plain_call((grad,)):
            given = (x,) if z is None else (x, z)
            vjp: Any = torch.func.vjp
            bars = vjp(lambda *points: one_norms(points[0], points[-1]), *given)[1](grad)
            return bars if z is not None else (*bars, None)
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[0 if z is None else 1]
        other = x if z is None else z
        x_bar = torch.zeros_like(x) if needs[0] else None
        z_bar = x_bar if z is None else torch.zeros_like(z) if needs[1] else None
        for i in range(0, x.shape[-2], _ROWS):
            for j in range(0, other.shape[-2], _ROWS):
                rows, columns = slice(i, i + _ROWS), slice(j, j + _ROWS)
                bars = _one_norms_backward(grad[..., rows, columns], x[..., rows, :], other[..., columns, :], needs)
                for whole, place, bar in ((x_bar, rows, bars[0]), (z_bar, columns, bars[1])):
                    if whole is not None and bar is not None:
                        whole[..., place, :] += bar
        return x_bar, None if z is None else z_bar


def _one_norms_backward(grad: Tensor, x: Tensor, z: Tensor, needs: tuple[bool, bool]) -> list[Tensor | None]:
    with torch.enable_grad():
        x, z = (t.detach().requires_grad_(needed) for t, needed in zip((x, z), needs, strict=True))
        distances = torch.cdist(x, z, p=1)
    found = iter(torch.autograd.grad(distances, [t for t in (x, z) if t.requires_grad], grad))
    return [next(found) if needed else None for needed in needs]


def gram(x: Tensor, z: Tensor | None, kernel: Kernel) -> Tensor:
    """Return K [..., S, Q] of x [..., S, D] and z [..., Q, D] (x with itself if z is None)."""
    if isinstance(kernel, Combination):
        return kernel.form(x, z, gram)
    if isinstance(kernel, Laplace) and kernel.norm == 1:
        wide = x.dtype in (torch.float32, torch.float64) and (z is None or z.dtype is x.dtype)
        if not wide or not is_plain_call((x, z, *kernel.parameters)):
            return reference_gram(x, z, kernel)
        parameters = (for_matrices(match_parameter(p, x)) for p in kernel.parameters)
        return kernel.of_one_norms(_OneNorms.apply(x, z), *parameters)
    if isinstance(kernel, Stationary):
        return _of_distances(x, z, kernel)
    return reference_gram(x, z, kernel)


def _of_distances(x: Tensor, z: Tensor | None, kernel: Stationary) -> Tensor:
    if type(kernel) is not RBF:
        parameters = [for_matrices(match_parameter(p, x)) for p in kernel.parameters]
        by_products = kernel.smooth and _products_suffice(x, x if z is None else z, parameters[0])
        return kernel.of_squares(_Squares.apply(x, z, by_products), *parameters)
    hyper, values = pack(kernel, None, x.shape[:-2], x.dtype, x.device)
    return _Rbf.apply(x, z, hyper, values, kernel.name)
