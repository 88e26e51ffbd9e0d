"""Kernels that are functions of the distance between two points."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import parameter
from .base import ARD, Kernel, Number, is_positive
from .slopes import Ends, with_slope

NU = (0.5, 1.5, 2.5)
NORMS = (1, 2)
ORDINARY = (2.0**-40, 2.0**40)
"""Lengthscales whose squares, and those of distances up to 2^23 times as large, are far from the ends of float32."""
LARGEST_POWER = {torch.float64: 1000}
"""The power of two that features are divided by, at most; 120 in all other dtypes."""
SQUARES = {torch.float64: (1e-300, 1e300)}
"""Range of the squares of lengthscales that the backends compute with; (1e-36, 1e36) in all other dtypes."""


def _is_lengthscale(value: Number) -> Any:
    """Return True for a value > 0 whose square is in range. Numbers have been brought into range before."""
    if not isinstance(value, Tensor):
        return is_positive(value)
    least, most = SQUARES.get(value.dtype, (1e-36, 1e36))
    square = value.detach().square()
    return (value > 0) & (square >= least) & (square <= most)


class Stationary(Kernel):
    """Base class of the kernels of squared Euclidean distances."""

    # False if the kernel has a cusp at distance 0: there an error of the squared distance grows to its root.
    smooth: ClassVar[bool] = True

    @property
    def extreme(self) -> bool:  # type: ignore[override]
        length = self.lengthscale  # type: ignore[attr-defined]
        return not isinstance(length, Tensor) and not ORDINARY[0] < length < ORDINARY[1]

    def in_own_unit(self, like: Tensor) -> Kernel:
        if not self.extreme:
            return self
        most = LARGEST_POWER.get(like.dtype, 120)
        length: float = self.lengthscale  # type: ignore[attr-defined]
        power = max(-most, min(most, math.frexp(length)[1]))
        unit = like.new_full(like.shape[-1:], 2.0**power)
        return ARD(replace(self, lengthscale=length * 2.0**-power), unit)  # type: ignore[call-arg]

    def of_squares(self, squares: Tensor, *parameters: Number) -> Tensor:
        """Compute the kernel of squared distances [..., S, Q]. Parameters broadcast against [..., 1, 1]."""
        raise NotImplementedError

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        return self.of_squares(squared_distances(x, z), *parameters)


@dataclass(frozen=True, eq=False)
class RBF(Stationary):
    """k(x, z) = exp(-|x - z|^2 / (2 lengthscale^2)).

    Equivalent to ``torch.exp(-torch.cdist(x, z) ** 2 / (2 * lengthscale ** 2))``. Squared distances are sums of squared
    differences, never |x|^2 + |z|^2 - 2 x.z, so nothing cancels, and the diagonal of a Gram matrix is exactly 1.

    Args:
        lengthscale: number > 0 (or a tensor that broadcasts over the batch dimensions). For one per feature write
            ``ARD(RBF(1.0), v)``.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    lengthscale: Number
    name: ClassVar[str] = "rbf"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", parameter("RBF.lengthscale", self.lengthscale, positive=True))

    @property
    def parameters(self) -> tuple[Number, ...]:
        return (self.lengthscale,)

    def of_squares(self, squares: Tensor, *parameters: Number) -> Tensor:
        (lengthscale,) = parameters
        return torch.exp(-0.5 * squares / lengthscale**2)

    def valid(self, *parameters: Number) -> Tensor | bool:
        return _is_lengthscale(parameters[0])


@dataclass(frozen=True, eq=False)
class Matern(Stationary):
    """The Matern kernel of smoothness ``nu`` = 1/2, 3/2 or 5/2.

    With r = sqrt(2 nu) |x - z| / lengthscale: exp(-r), (1 + r) exp(-r), (1 + r + r^2 / 3) exp(-r).
    Equivalent to GPyTorch's ``MaternKernel(nu)`` and scikit-learn's ``Matern(length_scale, nu=nu)``. At nu = 1/2 the
    kernel has a cusp at distance 0; its gradient there is 0.

    Args:
        lengthscale: number > 0 (or a tensor that broadcasts over the batch dimensions). For one per feature write
            ``ARD(Matern(1.0, nu), v)``.
        nu: 0.5, 1.5 or 2.5.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    lengthscale: Number
    nu: float
    name: ClassVar[str] = "matern"
    constants: ClassVar[frozenset[str]] = frozenset({"nu"})

    def __post_init__(self) -> None:
        if self.nu not in NU:
            raise ValueError(f"Matern.nu: expected 0.5, 1.5 or 2.5, got {self.nu!r}")
        object.__setattr__(self, "lengthscale", parameter("Matern.lengthscale", self.lengthscale, positive=True))

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        return self.nu > 0.5

    def of_squares(self, squares: Tensor, *parameters: Number) -> Tensor:
        (lengthscale,) = parameters
        return half_integer_matern(squares * (2 * self.nu / lengthscale**2), int(self.nu))

    def valid(self, *parameters: Number) -> Tensor | bool:
        return _is_lengthscale(parameters[0])


@dataclass(frozen=True, eq=False)
class Laplace(Stationary):
    """k(x, z) = exp(-|x - z| / lengthscale), with the Euclidean distance or that of the 1-norm.

    Equivalent to ``torch.exp(-torch.cdist(x, z, p=norm) / lengthscale)``. ``norm=2`` is ``Matern(lengthscale,
    nu=0.5)``, and ``norm=1`` is scikit-learn's ``laplacian_kernel(gamma=1 / lengthscale)``. The kernel has a cusp if
    two points coincide (norm 2) or share a coordinate (norm 1); the gradient of the distance there is 0.

    Args:
        lengthscale: number > 0 (or a tensor that broadcasts over the batch dimensions). For one per feature write
            ``ARD(Laplace(1.0), v)``.
        norm: 2 (default) or 1.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    lengthscale: Number
    norm: int = 2
    name: ClassVar[str] = "laplace"
    constants: ClassVar[frozenset[str]] = frozenset({"norm"})
    smooth: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"Laplace.norm: expected 1 or 2, got {self.norm!r}")
        object.__setattr__(self, "lengthscale", parameter("Laplace.lengthscale", self.lengthscale, positive=True))

    @property
    def extreme(self) -> bool:  # type: ignore[override]
        return self.norm == 2 and super().extreme

    def of_squares(self, squares: Tensor, *parameters: Number) -> Tensor:
        return half_integer_matern(squares / parameters[0] ** 2, 0)

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        if self.norm == 2:
            return super().evaluate(x, z, *parameters)
        return self.of_one_norms(one_norms(x, z), *parameters)

    def of_one_norms(self, distances: Tensor, *parameters: Number) -> Tensor:
        """Compute the kernel of the 1-norms [..., S, Q] of differences."""
        return torch.exp(-distances / parameters[0])

    def valid(self, *parameters: Number) -> Tensor | bool:
        return _is_lengthscale(parameters[0])


@dataclass(frozen=True, eq=False)
class RationalQuadratic(Stationary):
    """k(x, z) = (1 + |x - z|^2 / (2 alpha lengthscale^2))^-alpha.

    Equivalent to the kernels of this name in scikit-learn and GPyTorch. With growing alpha it tends to
    ``RBF(lengthscale)``.

    Args:
        lengthscale: number > 0 (or a tensor that broadcasts over the batch dimensions). For one per feature write
            ``ARD(RationalQuadratic(1.0, alpha), v)``.
        alpha: number > 0 (or such a tensor). Default 1.

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor.
    """

    lengthscale: Number
    alpha: Number = 1.0
    name: ClassVar[str] = "rational_quadratic"

    def __post_init__(self) -> None:
        for name in ("lengthscale", "alpha"):
            value = parameter(f"RationalQuadratic.{name}", getattr(self, name), positive=True)
            object.__setattr__(self, name, value)

    def of_squares(self, squares: Tensor, *parameters: Number) -> Tensor:
        lengthscale, alpha = parameters
        return torch.exp(-alpha * torch.log1p(squares / (2 * alpha * lengthscale**2)))

    def valid(self, *parameters: Number) -> Tensor | bool:
        lengthscale, alpha = parameters
        return _is_lengthscale(lengthscale) & is_positive(alpha)


def _matern(u: Tensor, order: int) -> Tensor:
    r = u.sqrt()
    decay = torch.exp(-r)
    return decay if order == 0 else (1 + r) * decay if order == 1 else (1 + r + u / 3) * decay


def _slope_of_matern(u: Tensor, order: int) -> Tensor:
    """Return the derivative: -1/2 or -1/6 times the kernel of the next lower order."""
    if order:
        return half_integer_matern(u, order - 1) * (-0.5 if order == 1 else -1 / 6)
    r = torch.where(u == 0, 1.0, u).sqrt()
    return torch.where(u == 0, 0.0, torch.exp(-r) / (-2 * r))


def _matern_at_zero(u: Tensor, order: int) -> Tensor:
    """Return the polynomial whose derivatives at u = 0 are those that :func:`_slope_of_matern` has."""
    return torch.ones_like(u) if order == 0 else 1 - u / 2 if order == 1 else 1 - u / 6 + u * u / 24


# exp(-r), (1 + r) exp(-r) or (1 + r + r^2 / 3) exp(-r) of u = r^2, for order 0, 1, 2. At u = 0 the derivative of
# exp(-r), which has none, is 0.
half_integer_matern = with_slope(_matern, _slope_of_matern, Ends(lambda u: u == 0, _matern_at_zero, 1.0))


def squared_distances(x: Tensor, z: Tensor, block_bytes: int = 1 << 26) -> Tensor:
    """Return squared distances [..., S, Q] of x [..., S, D] and z [..., Q, D], computed from differences.

    Blocks of D keep the [S, Q, D] array small. ``torch.cdist(...)**2`` is not used, as its second derivative is
    undefined at distance zero.
    """
    return sum_over_features(x, z, torch.square, block_bytes)


def one_norms(x: Tensor, z: Tensor) -> Tensor:
    """Return |x - z|_1 [..., S, Q] of x [..., S, D] and z [..., Q, D], differentiable any number of times."""
    return sum_over_features(x, z, torch.abs)


def sum_over_features(x: Tensor, z: Tensor, function: Any, block_bytes: int = 1 << 26) -> Tensor:
    """Return the sum over d of function(x_d - z_d), [..., S, Q]."""
    rows = x.shape[-2] * z.shape[-2] * max(1, x.shape[:-2].numel()) * x.element_size()
    step = max(1, block_bytes // max(1, rows))
    total = x.new_zeros(torch.broadcast_shapes(x.shape[:-2], z.shape[:-2]) + (x.shape[-2], z.shape[-2]))
    for start in range(0, x.shape[-1], step):
        a, b = x[..., start : start + step], z[..., start : start + step]
        total = total + function(a.unsqueeze(-2) - b.unsqueeze(-3)).sum(-1)
    return total
