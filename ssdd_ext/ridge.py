"""The ridge, by name: published systems differ by three orders of magnitude in what "1e-6" means."""

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

    ``v`` is a number >= 0, or a tensor with or without gradient that broadcasts over the batch dimensions; the
    gradient to ``v`` itself always flows, ``detach`` is about the trace only.
    """

    kind: str
    value: float | Tensor
    detach: bool = False

    def __post_init__(self) -> None:
        choice("Ridge.kind", self.kind, KINDS)
        object.__setattr__(self, "value", parameter(f"Ridge.{self.kind}", self.value))

    @classmethod
    def absolute(cls, value: float | Tensor) -> Ridge:
        """lambda = value."""
        return cls("absolute", value)

    @classmethod
    def trace(cls, value: float | Tensor, detach: bool = True) -> Ridge:
        """lambda = value * tr(K); KRR-ST's convention, where the trace is a constant for the gradient."""
        return cls("trace", value, detach)

    @classmethod
    def mean_trace(cls, value: float | Tensor, detach: bool = False) -> Ridge:
        """lambda = value * tr(K) / S; FRePo's, KIP's and RFAD's convention, differentiated through the trace."""
        return cls("mean_trace", value, detach)

    def amount(self, k_ss: Tensor, value: Tensor | float) -> Tensor | float:
        """lambda [...] for Gram matrices k_ss [..., S, S]; ``value`` broadcasts against [...]."""
        if self.kind == "absolute":
            return value
        trace = k_ss.diagonal(dim1=-2, dim2=-1).sum(-1)
        if self.detach:
            trace = trace.detach()
        return value * trace if self.kind == "trace" else value * trace / k_ss.shape[-1]
