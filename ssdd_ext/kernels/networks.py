"""Kernels of infinitely wide ReLU networks.

For Gaussian (u, v) of unit variance and correlation c, E[relu(u) relu(v)] = kappa_1(c) / 2 and the probability that
both are positive is kappa_0(c) / 2 (Cho and Saul, 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import parameter
from .base import Kernel, Number, is_not_negative, is_positive
from .multiply import matmul
from .products import root
from .slopes import Ends, with_slope


def _kappa(c: Tensor, order: int) -> Tensor:
    angle = torch.acos(c)
    if order == 0:
        return 1 - angle / math.pi
    return (((1 - c) * (1 + c)).sqrt() + (math.pi - angle) * c) / math.pi


def _slope_of_kappa(c: Tensor, order: int) -> Tensor:
    if order:
        return kappa(c, 0)
    square = (1 - c) * (1 + c)
    is_end = square <= 0
    return torch.where(is_end, 0.0, torch.where(is_end, 1.0, square).rsqrt() / math.pi)


def _kappa_at_end(c: Tensor, order: int) -> Tensor:
    return torch.where(c > 0, torch.ones_like(c) if order == 0 else c, 0.0)


# kappa_0(c) = 1 - acos(c) / pi and kappa_1, whose derivative is kappa_0, of correlations c in [-1, 1]. The derivative
# of kappa_0 is infinite at -1 and 1; it is defined as 0 there.
kappa = with_slope(_kappa, _slope_of_kappa, Ends(lambda c: (1 - c) * (1 + c) <= 0, _kappa_at_end, 0.0))


@dataclass(frozen=True)
class _Layer:
    """Covariances of one layer: of x with z [..., S, Q], and of x and z with themselves [..., S, 1] and [..., 1, Q]."""

    k: Tensor
    k_x: Tensor
    k_z: Tensor
    same: bool

    @classmethod
    def of_features(cls, x: Tensor, z: Tensor) -> _Layer:
        k_x, k_z = x.square().sum(-1)[..., :, None], z.square().sum(-1)[..., None, :]
        return cls(matmul(x, z.mT), k_x, k_z, z is x)

    def map(self, function: Any) -> _Layer:
        return _Layer(function(self.k), function(self.k_x), function(self.k_z), self.same)

    def norms(self) -> Tensor:
        return root(self.k_x) * root(self.k_z)

    def correlations(self, norms: Tensor) -> Tensor:
        """Return the correlations, in [-1, 1], exactly 1 for a point with itself, and 0 with a point 0."""
        is_zero = norms == 0
        c = torch.where(is_zero, 0.0, self.k / torch.where(is_zero, 1.0, norms)).clamp(-1, 1)
        if not self.same:
            return c
        own = torch.eye(c.shape[-1], dtype=torch.bool, device=c.device) & (norms.detach() > 0)
        return torch.where(own, 1.0, c)


def _widen(x: Tensor) -> Tensor:
    """Return x in float64 if the device has it: near c = 1 an angle has only half the digits of c."""
    return x if x.dtype == torch.float64 or x.device.type == "mps" else x.double()


def _widen_inputs(x: Tensor, z: Tensor, parameters: tuple[Number, ...]) -> tuple[Tensor, Tensor, list[Number]]:
    wide = _widen(x)
    wide_parameters = [p.to(wide.dtype) if isinstance(p, Tensor) else p for p in parameters]
    return wide, wide if z is x else _widen(z), wide_parameters


@dataclass(frozen=True, eq=False)
class ArcCosine(Kernel):
    """The arc-cosine kernels of Cho and Saul (2009).

    With t the angle between x and z: 1 - t / pi (order 0), and |x| |z| (sin t + (pi - t) cos t) / pi (order 1). The
    gradient of an angle of 0 or pi is 0, and so is that at a point 0. Order 0 with a point 0 is 1/2.

    Args:
        order: 0 or 1.

    Raises:
        ValueError: another order.
    """

    order: int
    name: ClassVar[str] = "arc_cosine"
    constants: ClassVar[frozenset[str]] = frozenset({"order"})

    def __post_init__(self) -> None:
        if self.order not in (0, 1):
            raise ValueError(f"ArcCosine.order: expected 0 or 1, got {self.order!r}")

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        wide, other, _ = _widen_inputs(x, z, ())
        layer = _Layer.of_features(wide, other)
        norms = layer.norms()
        k = kappa(layer.correlations(norms), self.order)
        return (k if self.order == 0 else norms * k).to(x.dtype)

    def valid(self, *parameters: Number) -> Tensor | bool:
        return True


@dataclass(frozen=True, eq=False)
class _Network(Kernel):
    depth: int
    w_std: Number = math.sqrt(2)
    b_std: Number = 0.0
    constants: ClassVar[frozenset[str]] = frozenset({"depth"})

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.depth, int) or self.depth < 0:
            raise ValueError(f"{name}.depth: expected a whole number >= 0, the hidden layers, got {self.depth!r}")
        object.__setattr__(self, "w_std", parameter(f"{name}.w_std", self.w_std, positive=True))
        object.__setattr__(self, "b_std", parameter(f"{name}.b_std", self.b_std))

    def _covariances(self, x: Tensor, z: Tensor, parameters: tuple[Number, ...]) -> tuple[Tensor, Tensor]:
        """Return (NNGP, NTK) of the output."""
        x, z, (w, b) = _widen_inputs(x, z, parameters)
        w2, b2 = w * w, b * b
        layer = _Layer.of_features(x, z).map(lambda k: (w2 / max(1, x.shape[-1])) * k + b2)
        tangent = layer.k
        for _ in range(self.depth):
            norms = layer.norms()
            c = layer.correlations(norms)
            tangent = tangent * (w2 / 2 * kappa(c, 0))
            k = w2 / 2 * norms * kappa(c, 1) + b2
            layer = _Layer(k, w2 / 2 * layer.k_x + b2, w2 / 2 * layer.k_z + b2, layer.same)
            tangent = tangent + layer.k
        return layer.k, tangent

    def valid(self, *parameters: Number) -> Tensor | bool:
        w_std, b_std = parameters
        return is_positive(w_std) & is_not_negative(b_std)


@dataclass(frozen=True, eq=False)
class NNGP(_Network):
    """The covariance of an infinitely wide, fully connected ReLU network with random weights.

    The network is ``Dense, Relu`` times depth, then ``Dense``, with weights of standard deviation w_std / sqrt(fan_in)
    and biases of b_std. Equivalent to the ``nngp`` of neural-tangents. It is computed in float64; see :class:`NTK` for
    the gradients.

    Args:
        depth: hidden layers, a whole number >= 0.
        w_std: number > 0 (or a tensor that broadcasts over the batch dimensions). Default sqrt(2), at which the
            variance does not change from layer to layer.
        b_std: number >= 0 (or such a tensor). Default 0.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    name: ClassVar[str] = "nngp"

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        return self._covariances(x, z, parameters)[0].to(x.dtype)


@dataclass(frozen=True, eq=False)
class NTK(_Network):
    """The neural tangent kernel of an infinitely wide, fully connected ReLU network.

    The network is ``Dense, Relu`` times depth, then ``Dense``, with weights w_std / sqrt(fan_in) and biases b_std times
    standard normal parameters. Equivalent to the ``ntk`` of neural-tangents. It is computed in float64. The gradient of
    an angle of 0 or pi is 0.

    Args:
        depth: hidden layers, a whole number >= 0.
        w_std: number > 0 (or a tensor that broadcasts over the batch dimensions). Default sqrt(2), at which the
            variance does not change from layer to layer.
        b_std: number >= 0 (or such a tensor). Default 0.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    name: ClassVar[str] = "ntk"

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        return self._covariances(x, z, parameters)[1].to(x.dtype)
