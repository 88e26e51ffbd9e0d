"""The base class of all kernel functions, and their combinations: sums, products, factors, lengthscales per feature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import checks
from ..checks import describe, parameter

Number = float | Tensor
# gram(x, z, kernel): the Gram matrix of a part, by the backend that runs the whole. z=None stands for x.
GramOf = Callable[[Tensor, "Tensor | None", "Kernel"], Tensor]


def match_parameter(value: Number, like: Tensor) -> Number:
    """Return a hyper-parameter in the dtype and on the device of ``like``; a number stays a number."""
    return value.to(like) if isinstance(value, Tensor) else value


def for_matrices(value: Number) -> Number:
    """Return a hyper-parameter [...] as [..., 1, 1], to broadcast against matrices; a number stays a number."""
    return value[..., None, None] if isinstance(value, Tensor) else value


def is_positive(value: Number) -> Any:
    """Return True for a finite value > 0, elementwise and without a synchronisation."""
    return (value > 0) & (value < math.inf)


def is_not_negative(value: Number) -> Any:
    """Return True for a finite value >= 0, elementwise and without a synchronisation."""
    return (value >= 0) & (value < math.inf)


def _as_flags(found: Tensor | bool, like: Tensor) -> Tensor:
    # torch.as_tensor is not used, as it moves a tensor to the default device that the user set.
    return found if isinstance(found, Tensor) else torch.full((), found, device=like.device)


_NAMES: set[str | None] = set()  # of the kernels of this package


@dataclass(frozen=True, eq=False)
class Kernel:
    """Base class of all kernels: k(x, z) of two points.

    A kernel is a frozen dataclass. Its fields are its hyper-parameters: numbers, or tensors [...] with gradients that
    broadcast over the batch dimensions. Fields named in ``constants`` are plain values, such as an order or a depth.
    ``k1 + k2``, ``k1 * k2`` and ``2.0 * k`` are kernels too. Inside ``torch.compile``, which cannot trace the product
    of a tensor and a kernel, write ``Scaled(k, v)`` for a tensor v. Two kernels are equal if they have the same class,
    equal numbers and the same tensors. The values of tensors are not read.
    """

    name: ClassVar[str]
    # True if k(x, z) = phi(x).phi(z) with phi of D (+1) numbers, so that low-rank and primal plans exist.
    linear: ClassVar[bool] = False
    # True if a square of a lengthscale that is a number may leave float32: see :meth:`in_own_unit`.
    extreme: ClassVar[bool] = False
    constants: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse the name of a kernel of this package: the native core knows kernels by name."""
        super().__init_subclass__(**keywords)
        name = getattr(cls, "name", None)
        if cls.__module__.partition(".")[0] == "ssdd_ext":
            _NAMES.add(name)
        elif name in _NAMES:
            raise TypeError(
                f"kernel {cls.__qualname__}: expected a name of its own, got name = {name!r}, which ssdd_ext has; the "
                f"core would compute that kernel in its place"
            )

    @property
    def parameters(self) -> tuple[Number, ...]:
        """The hyper-parameters, in the order of the fields. ``evaluate`` and the native core receive them."""
        return tuple(value for _, value in self.named_parameters())

    @property
    def spec(self) -> str:
        """The name and the values of ``constants``, such as "polynomial:3", which the native ops receive."""
        if not self.constants:
            return self.name
        fields = (field.name for field in dataclasses.fields(self))
        return ":".join([self.name, *(str(getattr(self, name)) for name in fields if name in self.constants)])

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Number]]:
        """Yield (name, value) of every hyper-parameter. Names of a part start with its own, as in ``parts.0.scale``."""
        for field in dataclasses.fields(self):
            if field.name not in self.constants:
                yield prefix + field.name, getattr(self, field.name)

    def map(self, function: Callable[[Number], Any]) -> Kernel:
        """Return the same kernel with every hyper-parameter replaced by ``function`` of it, called in their order."""
        return dataclasses.replace(self, **{name: function(value) for name, value in self.named_parameters()})

    def batch_shapes(self, prefix: str = "") -> dict[str, torch.Size]:
        """Return the batch shapes of the hyper-parameters that are tensors, by name."""
        named = self.named_parameters(f"{prefix}{type(self).__name__}.")
        return {name: p.shape for name, p in named if isinstance(p, Tensor)}

    def in_range(self) -> list[Tensor]:
        """Return whether the hyper-parameters that are tensors are in range, [...] each; nothing if all are numbers."""
        parameters = self.parameters
        tensors = [p for p in parameters if isinstance(p, Tensor)]
        return [_as_flags(self.valid(*parameters), tensors[0])] if tensors else []

    def check_features(self, count: int) -> None:
        """Raise if the kernel cannot take points of ``count`` features."""

    def in_own_unit(self, like: Tensor) -> Kernel:
        """Return the same kernel, which divides features by a power of two if a lengthscale is so large or so small
        that squares of distances leave the range of the dtype.

        Args:
            like: a tensor [D] with the dtype and the device of the computation.
        """
        return self

    def evaluate(self, x: Tensor, z: Tensor, *parameters: Number) -> Tensor:
        """Compute the formula: x [..., S, D], z [..., Q, D] to [..., S, Q]. Parameters broadcast against [..., 1, 1].

        ``z is x`` in the Gram matrix of points with themselves.
        """
        raise NotImplementedError

    def valid(self, *parameters: Number) -> Tensor | bool:
        """Return True for tensor parameters in range, elementwise and without a synchronisation."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return checks.same_fields(self, other)

    def __hash__(self) -> int:
        return checks.hash_of_fields(self)

    def __add__(self, other: Any) -> Kernel:
        return Sum(_join_parts(Sum, self, other)) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Any) -> Kernel:
        if isinstance(other, Kernel):
            return Product(_join_parts(Product, self, other))
        if isinstance(other, (int, float, Tensor)):
            return self.scaled(other)
        return NotImplemented

    __rmul__ = __mul__

    def scaled(self, factor: Number) -> Kernel:
        """Return ``factor * self``."""
        return Scaled(self, factor)


def _join_parts(kind: type[Several], *parts: Kernel) -> tuple[Kernel, ...]:
    return tuple(own for part in parts for own in (part.parts if type(part) is kind else (part,)))


def _check_kernel(name: str, value: Any) -> None:
    if not isinstance(value, Kernel):
        raise TypeError(f"{name}: expected a kernel object such as Linear() or RBF(1.0), got {describe(value)}")


class Combination(Kernel):
    """Base class of the kernels that combine other kernels."""

    @property
    def spec(self) -> str:
        return self.name

    def children(self) -> dict[str, Kernel]:
        """Return the kernels that are combined, by name."""
        raise NotImplementedError

    def form(self, x: Tensor, z: Tensor | None, gram: GramOf) -> Tensor:
        """Return K [..., S, Q] from the Gram matrices of the combined kernels, which ``gram`` computes."""
        raise NotImplementedError

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Number]]:
        for name, child in self.children().items():
            yield from child.named_parameters(f"{prefix}{name}.")
        yield from super().named_parameters(prefix)

    def batch_shapes(self, prefix: str = "") -> dict[str, torch.Size]:
        found: dict[str, torch.Size] = {}
        for name, child in self.children().items():
            found |= child.batch_shapes(f"{prefix}{type(self).__name__}.{name}: ")
        return found

    def in_range(self) -> list[Tensor]:
        return [valid for child in self.children().values() for valid in child.in_range()]

    def check_features(self, count: int) -> None:
        for child in self.children().values():
            child.check_features(count)


@dataclass(frozen=True, eq=False)
class Several(Combination):
    """Base class of sums and products."""

    parts: tuple[Kernel, ...]
    constants: ClassVar[frozenset[str]] = frozenset({"parts"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError(f"{type(self).__name__}.parts: expected at least one kernel, got none")
        for i, part in enumerate(self.parts):
            _check_kernel(f"{type(self).__name__}.parts[{i}]", part)

    @property
    def extreme(self) -> bool:  # type: ignore[override]
        return any(part.extreme for part in self.parts)

    def in_own_unit(self, like: Tensor) -> Kernel:
        return dataclasses.replace(self, parts=tuple(part.in_own_unit(like) for part in self.parts))

    def children(self) -> dict[str, Kernel]:
        return {f"parts.{i}": part for i, part in enumerate(self.parts)}

    def map(self, function: Callable[[Number], Any]) -> Kernel:
        return dataclasses.replace(self, parts=tuple(part.map(function) for part in self.parts))


@dataclass(frozen=True, eq=False)
class Sum(Several):
    """k(x, z) = k1(x, z) + k2(x, z) + ...; written ``k1 + k2``.

    Equivalent, for its Gram matrix, to ``gram(x, z, kernel=k1) + gram(x, z, kernel=k2)``.

    Args:
        parts: kernels, at least one.

    Raises:
        TypeError: a part that is not a kernel.
        ValueError: no part.
    """

    name: ClassVar[str] = "sum"

    def form(self, x: Tensor, z: Tensor | None, gram: GramOf) -> Tensor:
        total = gram(x, z, self.parts[0])
        for part in self.parts[1:]:
            total = total + gram(x, z, part)
        return total


@dataclass(frozen=True, eq=False)
class Product(Several):
    """k(x, z) = k1(x, z) * k2(x, z) * ...; written ``k1 * k2``.

    Equivalent, for its Gram matrix, to ``gram(x, z, kernel=k1) * gram(x, z, kernel=k2)``.

    Args:
        parts: kernels, at least one.

    Raises:
        TypeError: a part that is not a kernel.
        ValueError: no part.
    """

    name: ClassVar[str] = "product"

    def form(self, x: Tensor, z: Tensor | None, gram: GramOf) -> Tensor:
        total = gram(x, z, self.parts[0])
        for part in self.parts[1:]:
            total = total * gram(x, z, part)
        return total


@dataclass(frozen=True, eq=False)
class Scaled(Combination):
    """k(x, z) = factor * kernel(x, z); written ``factor * kernel``.

    Equivalent, for its Gram matrix, to ``factor * gram(x, z, kernel=kernel)``.

    Args:
        kernel: any kernel.
        factor: number > 0 (or a tensor that broadcasts over the batch dimensions).

    Raises:
        ValueError: a number out of range.
        TypeError: neither a number nor a floating-point tensor, or no kernel.
    """

    kernel: Kernel
    factor: Number
    name: ClassVar[str] = "scaled"
    constants: ClassVar[frozenset[str]] = frozenset({"kernel"})

    def __post_init__(self) -> None:
        _check_kernel("Scaled.kernel", self.kernel)
        object.__setattr__(self, "factor", parameter("Scaled.factor", self.factor, positive=True))

    @property
    def extreme(self) -> bool:  # type: ignore[override]
        return self.kernel.extreme

    def in_own_unit(self, like: Tensor) -> Kernel:
        return dataclasses.replace(self, kernel=self.kernel.in_own_unit(like))

    def children(self) -> dict[str, Kernel]:
        return {"kernel": self.kernel}

    def map(self, function: Callable[[Number], Any]) -> Kernel:
        return Scaled(self.kernel.map(function), function(self.factor))

    def batch_shapes(self, prefix: str = "") -> dict[str, torch.Size]:
        own = {f"{prefix}Scaled.factor": self.factor.shape} if isinstance(self.factor, Tensor) else {}
        return super().batch_shapes(prefix) | own

    def in_range(self) -> list[Tensor]:
        own = [is_positive(self.factor)] if isinstance(self.factor, Tensor) else []
        return super().in_range() + own

    def form(self, x: Tensor, z: Tensor | None, gram: GramOf) -> Tensor:
        return for_matrices(match_parameter(self.factor, x)) * gram(x, z, self.kernel)


@dataclass(frozen=True, eq=False)
class ARD(Combination):
    """k(x / lengthscale, z / lengthscale): one lengthscale per feature (automatic relevance determination).

    ``ARD(RBF(1.0), v)`` is exp(-sum_d (x_d - z_d)^2 / (2 v_d^2)). GPyTorch writes it ``RBFKernel(ard_num_dims=D)``, and
    scikit-learn ``RBF(length_scale=[...])``.
    Equivalent, for its Gram matrix, to ``gram(x / lengthscale, z / lengthscale, kernel=kernel)``.

    Args:
        kernel: any kernel; it receives the features divided by their lengthscales.
        lengthscale: tensor [..., D] of numbers > 0, with or without gradient; the dimensions before the last broadcast
            over the batch dimensions.

    Raises:
        TypeError: a lengthscale that is not a floating-point tensor with at least one dimension, or no kernel.
    """

    kernel: Kernel
    lengthscale: Tensor
    name: ClassVar[str] = "ard"
    constants: ClassVar[frozenset[str]] = frozenset({"kernel"})

    def __post_init__(self) -> None:
        _check_kernel("ARD.kernel", self.kernel)
        if not isinstance(self.lengthscale, Tensor) or self.lengthscale.dim() < 1:
            raise TypeError(
                f"ARD.lengthscale: expected a tensor [..., D], one number per feature, got "
                f"{describe(self.lengthscale)}; for one number for all features, write it in the kernel: RBF(1.0)"
            )
        parameter("ARD.lengthscale", self.lengthscale, positive=True)

    @property
    def extreme(self) -> bool:  # type: ignore[override]
        return self.kernel.extreme

    def in_own_unit(self, like: Tensor) -> Kernel:
        return dataclasses.replace(self, kernel=self.kernel.in_own_unit(like))

    def children(self) -> dict[str, Kernel]:
        return {"kernel": self.kernel}

    def map(self, function: Callable[[Number], Any]) -> Kernel:
        return ARD(self.kernel.map(function), function(self.lengthscale))

    def batch_shapes(self, prefix: str = "") -> dict[str, torch.Size]:
        return super().batch_shapes(prefix) | {f"{prefix}ARD.lengthscale": self.lengthscale.shape[:-1]}

    def in_range(self) -> list[Tensor]:
        return [*super().in_range(), is_positive(self.lengthscale).all(-1)]

    def check_features(self, count: int) -> None:
        if self.lengthscale.shape[-1] != count:
            raise ValueError(
                f"ARD.lengthscale: expected {count} numbers along the last dimension, one per feature of the inputs, "
                f"got {describe(self.lengthscale)}"
            )
        super().check_features(count)

    def features(self, x: Tensor) -> Tensor:
        """Return the features [..., S, D] that the combined kernel receives."""
        return x / self.lengthscale.to(x)[..., None, :]

    def form(self, x: Tensor, z: Tensor | None, gram: GramOf) -> Tensor:
        return gram(self.features(x), None if z is None else self.features(z), self.kernel)
