"""The ridge and its conventions, by name: the value 1e-6 means ridges that differ by a factor of 1000 between
published systems."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .checks import choice, parameter

KINDS = ("absolute", "trace", "mean_trace")


@dataclass(frozen=True)
class Ridge:
    """How lambda in K + lambda I follows from the Gram matrix K [S, S].

    Use the constructors: ``Ridge.absolute(v)``, ``Ridge.trace(v)``, ``Ridge.mean_trace(v)``.

    ============ ================ ===================== ==========================
    constructor  lambda           gradient through K    convention of
    ============ ================ ===================== ==========================
    absolute     v                none                  GP libraries
    trace        v * tr(K)        no (``detach=True``)  KRR-ST (v = 1e-6)
    mean_trace   v * tr(K) / S    yes                   FRePo, KIP (1e-6), RFAD (5e-3)
    ============ ================ ===================== ==========================

    Args:
        kind: "absolute", "trace" or "mean_trace".
        value: v, a number >= 0, or a tensor, with or without gradient, that broadcasts over the batch dimensions. The
            gradient to v itself always flows.
        detach: True treats the trace as a constant for the gradient. Default False.
    """

    kind: str
    value: float | Tensor
    detach: bool = False

    def __post_init__(self) -> None:
        choice("Ridge.kind", self.kind, KINDS)
        object.__setattr__(self, "value", parameter(f"Ridge.{self.kind}", self.value))

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
