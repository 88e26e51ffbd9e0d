"""The ridge and its conventions, by name: the value 1e-6 means ridges that differ by a factor of 1000 between
published systems."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import choice, describe, hash_of_fields, parameter, same_fields

KINDS = ("absolute", "trace", "mean_trace")
# Those whose value has a dimension of its own, per target [..., C] or per support point [..., S].
VECTOR_KINDS = ("per_target", "noise")


@dataclass(frozen=True, eq=False)
class Ridge:
    """How lambda in K + lambda I follows from the Gram matrix K [S, S].

    Use the constructors: ``Ridge.absolute(v)``, ``Ridge.trace(v)``, ``Ridge.mean_trace(v)``, ``Ridge.per_target(v)``,
    ``Ridge.noise(v)``.

    ============ ================ ===================== ==========================
    constructor  lambda           gradient through K    convention of
    ============ ================ ===================== ==========================
    absolute     v                none                  GP libraries
    trace        v * tr(K)        no (``detach=True``)  KRR-ST (v = 1e-6)
    mean_trace   v * tr(K) / S    yes                   FRePo, KIP (1e-6), RFAD (5e-3)
    per_target   v_c              none                  encoding models; v [..., C]
    noise        diag(v_s)        none                  heteroscedastic GPs; v [..., S]
    ============ ================ ===================== ==========================

    Planned PyTorch runs the last two rows. Their value is a tensor with one dimension more.

    Args:
        kind: "absolute", "trace", "mean_trace", "per_target" or "noise".
        value: v, a number >= 0, or a tensor, with or without gradient, that broadcasts over the batch dimensions. The
            gradient to v itself always flows.
        detach: True treats the trace as a constant for the gradient. Default False.
    """

    kind: str
    value: float | Tensor
    detach: bool = False

    def __post_init__(self) -> None:
        choice("Ridge.kind", self.kind, KINDS + VECTOR_KINDS)
        if self.kind in VECTOR_KINDS and (not isinstance(self.value, Tensor) or self.value.dim() < 1):
            what = "[..., C], one number per target" if self.kind == "per_target" else "[..., S], one per support point"
            raise TypeError(
                f"Ridge.{self.kind}: expected a tensor {what}, got {describe(self.value)}; for one number for all, "
                f"write Ridge.absolute(v)"
            )
        object.__setattr__(self, "value", parameter(f"Ridge.{self.kind}", self.value))

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other)

    def __hash__(self) -> int:
        return hash_of_fields(self)

    @classmethod
    def absolute(cls, value: float | Tensor) -> Ridge:
        """Return lambda = value.

        Equivalent to ``torch.as_tensor(value)``.

        Args:
            value: v.
        """
        return cls("absolute", value)

    @classmethod
    def trace(cls, value: float | Tensor, detach: bool = True) -> Ridge:
        """Return lambda = value * tr(K), the convention of KRR-ST, which treats the trace as a constant for the
        gradient.

        Equivalent to ``value * k_ss.detach().diagonal(dim1=-2, dim2=-1).sum(-1)``.

        Args:
            value: v.
            detach: treat the trace as a constant for the gradient. Default True.
        """
        return cls("trace", value, detach)

    @classmethod
    def mean_trace(cls, value: float | Tensor, detach: bool = False) -> Ridge:
        """Return lambda = value * tr(K) / S, the convention of FRePo, KIP and RFAD, differentiated through the trace.

        Equivalent to ``value * k_ss.diagonal(dim1=-2, dim2=-1).mean(-1)``.

        Args:
            value: v.
            detach: treat the trace as a constant for the gradient. Default False.
        """
        return cls("mean_trace", value, detach)

    @classmethod
    def per_target(cls, value: Tensor) -> Ridge:
        """Return lambda = value[..., c] for target c: one problem per target, all from one decomposition.

        Equivalent to one call per target c, with ``Ridge.absolute(value[..., c])``. The decomposition rounds more than
        a Cholesky factor per target does: in float32 the errors of results and gradients are 2 to 5 times as large
        (means over random problems with conditions from 1e2 to 1e6). ``solve_dtype=torch.float64`` avoids that.

        Args:
            value: v [..., C], a tensor with or without gradient. Each dimension before the last broadcasts over the
                batch dimensions.

        Raises:
            TypeError: not a tensor with at least one dimension.
        """
        return cls("per_target", value)

    @classmethod
    def noise(cls, value: Tensor) -> Ridge:
        """Return K + diag(value): one variance of the noise per support point.

        Equivalent to ``k_ss + torch.diag_embed(value)``.

        Args:
            value: v [..., S], a tensor with or without gradient. Each dimension before the last broadcasts over the
                batch dimensions.

        Raises:
            TypeError: not a tensor with at least one dimension.
        """
        return cls("noise", value)

    @property
    def batch_shape(self) -> torch.Size | None:
        """The batch shape of a value that is a tensor; None for a number."""
        if not isinstance(self.value, Tensor):
            return None
        return self.value.shape[:-1] if self.kind in VECTOR_KINDS else self.value.shape

    def check_sizes(self, points: int, targets: int) -> None:
        """Raise if the value has another number of support points or targets than the inputs."""
        if self.kind in VECTOR_KINDS and isinstance(self.value, Tensor):
            expected = targets if self.kind == "per_target" else points
            if self.value.shape[-1] != expected:
                what = "one per target" if self.kind == "per_target" else "one per support point"
                raise ValueError(
                    f"Ridge.{self.kind}: expected {expected} numbers along the last dimension, {what}, got "
                    f"{describe(self.value)}"
                )

    def diagonal(self, k_ss: Tensor, value: Tensor | float) -> Tensor | float:
        """Return what is added to the diagonal, [..., 1] or [..., S], or a number. ``per_target`` has none."""
        if self.kind == "noise":
            return value
        amount = self.amount(k_ss, value)
        return amount[..., None] if isinstance(amount, Tensor) else amount

    def amount(self, k_ss: Tensor, value: Tensor | float) -> Tensor | float:
        """Return lambda [...] for Gram matrices.

        Args:
            k_ss: [..., S, S].
            value: v, which broadcasts against [...].
        """
        if self.kind == "absolute":
            return value
        trace = k_ss.diagonal(dim1=-2, dim2=-1).sum(-1)
        if self.detach:
            trace = trace.detach()
        return value * trace if self.kind == "trace" else value * trace / k_ss.shape[-1]
