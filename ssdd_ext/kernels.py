"""Kernel functions as small immutable objects.

A kernel has hyper-parameters, their checks, and its formula in plain PyTorch. The native version of the same name is in
``csrc/``. CONTRIBUTING.md lists what a new kernel needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .checks import parameter


@dataclass(frozen=True)
class Kernel:
    """Base class of all kernels. ``parameters``: what the native core receives, in its order."""

    name: ClassVar[str]
    # True if k(x, z) = phi(x).phi(z) with phi of D (+1) numbers, so that low-rank and primal plans exist.
    linear: ClassVar[bool] = False

    @property
    def parameters(self) -> tuple[float | Tensor, ...]:
        raise NotImplementedError

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Tensor | float) -> Tensor:
        """Compute the formula: x [..., S, D], z [..., Q, D] to [..., S, Q]. Parameters broadcast against [..., 1,
        1]."""
        raise NotImplementedError

    def valid(self, *parameters: Tensor | float) -> Tensor | bool:
        """Return True for tensor parameters in range, elementwise and without a synchronisation."""
        raise NotImplementedError


@dataclass(frozen=True)
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

    scale: float | Tensor = 1.0
    bias: float | Tensor = 0.0
    name: ClassVar[str] = "linear"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", parameter("Linear.scale", self.scale, positive=True))
        object.__setattr__(self, "bias", parameter("Linear.bias", self.bias))

    @property
    def parameters(self) -> tuple[float | Tensor, ...]:
        return (self.scale, self.bias)

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Tensor | float) -> Tensor:
        scale, bias = parameters
        return scale * (x @ z.mT) + bias

    def valid(self, *parameters: Tensor | float) -> Tensor | bool:
        scale, bias = parameters
        return (scale > 0) & (scale < float("inf")) & (bias >= 0) & (bias < float("inf"))


@dataclass(frozen=True)
class RBF(Kernel):
    """k(x, z) = exp(-|x - z|^2 / (2 lengthscale^2)).

    Equivalent to ``torch.exp(-torch.cdist(x, z) ** 2 / (2 * lengthscale ** 2))``. Squared distances are sums of squared
    differences, never |x|^2 + |z|^2 - 2 x.z, so nothing cancels, and the diagonal of a Gram matrix is exactly 1.

    Args:
        lengthscale: number > 0 (or a tensor that broadcasts over the batch dimensions).

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    lengthscale: float | Tensor
    name: ClassVar[str] = "rbf"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", parameter("RBF.lengthscale", self.lengthscale, positive=True))

    @property
    def parameters(self) -> tuple[float | Tensor, ...]:
        return (self.lengthscale,)

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Tensor | float) -> Tensor:
        (lengthscale,) = parameters
        return torch.exp(-0.5 * squared_distances(x, z) / lengthscale**2)

    def valid(self, *parameters: Tensor | float) -> Tensor | bool:
        (lengthscale,) = parameters
        return (lengthscale > 0) & (lengthscale < float("inf"))


def squared_distances(x: Tensor, z: Tensor, block_bytes: int = 1 << 26) -> Tensor:
    """Return squared distances [..., S, Q] of x [..., S, D] and z [..., Q, D], computed from differences.

    Blocks of D keep the [S, Q, D] array small. ``torch.cdist(...)**2`` is not used, as its second derivative is
    undefined at distance zero.
    """
    rows = x.shape[-2] * z.shape[-2] * max(1, x.shape[:-2].numel()) * x.element_size()
    step = max(1, block_bytes // max(1, rows))
    total = x.new_zeros(torch.broadcast_shapes(x.shape[:-2], z.shape[:-2]) + (x.shape[-2], z.shape[-2]))
    for start in range(0, x.shape[-1], step):
        a, b = x[..., start : start + step], z[..., start : start + step]
        total = total + (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
    return total


KERNELS: dict[str, type[Kernel]] = {k.name: k for k in (Linear, RBF)}
