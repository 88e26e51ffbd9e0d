"""Kernels that are functions of the inner product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import parameter
from .base import Kernel, Number, is_not_negative, is_positive
from .multiply import matmul


@dataclass(frozen=True, eq=False)
class Linear(Kernel):
    """k(x, z) = scale * x.z + bias.

    ``bias=1`` gives the result of the ones column that KRR-ST appends to its features, without the column.
    Equivalent to ``scale * x @ z.mT + bias``.

    Args:
        scale: number > 0 (or a tensor that broadcasts over the batch dimensions). Default 1.
        bias: number >= 0 (or such a tensor). Default 0.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    scale: Number = 1.0
    bias: Number = 0.0
    name: ClassVar[str] = "linear"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", parameter("Linear.scale", self.scale, positive=True))
        object.__setattr__(self, "bias", parameter("Linear.bias", self.bias))

    @property
    def parameters(self) -> tuple[Number, ...]:
        return (self.scale, self.bias)

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        scale, bias = parameters
        return scale * matmul(x, z.mT) + bias

    def valid(self, *parameters: Number) -> Tensor | bool:
        scale, bias = parameters
        return is_positive(scale) & is_not_negative(bias)

    def scaled(self, factor: Number) -> Kernel:
        factor = parameter("factor", factor, positive=True)
        return Linear(factor * self.scale, factor * self.bias)


@dataclass(frozen=True, eq=False)
class Polynomial(Kernel):
    """k(x, z) = (scale * x.z + bias)^degree.

    Equivalent to ``(scale * x @ z.mT + bias) ** degree``, and to scikit-learn's ``polynomial_kernel(X, Z, degree,
    gamma=scale, coef0=bias)``.

    Args:
        degree: whole number >= 1.
        scale: number > 0 (or a tensor that broadcasts over the batch dimensions). Default 1.
        bias: number >= 0 (or such a tensor). Default 1.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    degree: int
    scale: Number = 1.0
    bias: Number = 1.0
    name: ClassVar[str] = "polynomial"
    constants: ClassVar[frozenset[str]] = frozenset({"degree"})

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or self.degree < 1:
            raise ValueError(f"Polynomial.degree: expected a whole number >= 1, got {self.degree!r}")
        object.__setattr__(self, "scale", parameter("Polynomial.scale", self.scale, positive=True))
        object.__setattr__(self, "bias", parameter("Polynomial.bias", self.bias))

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        scale, bias = parameters
        return (scale * matmul(x, z.mT) + bias) ** self.degree

    def valid(self, *parameters: Number) -> Tensor | bool:
        scale, bias = parameters
        return is_positive(scale) & is_not_negative(bias)


@dataclass(frozen=True, eq=False)
class Cosine(Kernel):
    """k(x, z) = x.z / (|x| |z|), and 0 if one of them is 0.

    Equivalent to scikit-learn's ``cosine_similarity``. The gradient at a point 0 is 0.
    """

    name: ClassVar[str] = "cosine"

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        return matmul(unit_rows(x), unit_rows(z).mT)

    def valid(self, *parameters: Number) -> Tensor | bool:
        return True


def root(square: Tensor) -> Tensor:
    """Return the square root. Its gradient at 0 is 0."""
    is_zero = square == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, square).sqrt())


def unit_rows(x: Tensor) -> Tensor:
    """Divide the rows of x [..., S, D] by their lengths; rows of zeros stay."""
    largest = x.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_ones((*x.shape[:-1], 1))
    # Divide by the largest entry first, so that squares neither overflow nor vanish.
    x = x / torch.where(largest == 0, 1.0, largest)
    length = root(x.square().sum(-1, keepdim=True))
    return x / torch.where(length == 0, 1.0, length)
