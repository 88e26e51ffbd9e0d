"""Gram matrices in planned PyTorch: forward and backward by products, without an S x Q x D array."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..kernels import RBF, Combination, Kernel, Laplace, Stationary, for_matrices, match_parameter
from ..reference import gram as reference_gram
from .gram import are_near, can_read, gram_backward, gram_setup, has_float64, squares_backward
from .hyper import pack
from .register import vmap_rule

_FAR = 1e4
"""Distance in lengthscales from which float64 products lose digits that float32 points have."""


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


def gram(x: Tensor, z: Tensor | None, kernel: Kernel) -> Tensor:
    """Return K [..., S, Q] of x [..., S, D] and z [..., Q, D] (x with itself if z is None)."""
    if isinstance(kernel, Combination):
        return kernel.form(x, z, gram)
    if isinstance(kernel, Stationary) and not (isinstance(kernel, Laplace) and kernel.norm == 1):
        return _of_distances(x, z, kernel)
    return reference_gram(x, z, kernel)


def _of_distances(x: Tensor, z: Tensor | None, kernel: Stationary) -> Tensor:
    if type(kernel) is not RBF:
        parameters = [for_matrices(match_parameter(p, x)) for p in kernel.parameters]
        by_products = kernel.smooth and _products_suffice(x, x if z is None else z, parameters[0])
        return kernel.of_squares(_Squares.apply(x, z, by_products), *parameters)
    hyper, values = pack(kernel, None, x.shape[:-2], x.dtype, x.device)
    return _Rbf.apply(x, z, hyper, values, kernel.name)
