"""KRR-ST (Lee et al., ICLR 2024): representations of a teacher, through a pool of networks trained on the pairs."""

from __future__ import annotations

from torch import Tensor

from ..objective import outer_loss
from ._base import Method, Step


class KrrSt(Method):
    """Equation 5 of the paper, and the named variants of it (``distill.loss``)."""

    ridge = "ridge"

    def loss(self, step: Step) -> Tensor:
        return outer_loss(step.networks, step.x_s, step.y_s, step.x_b, step.y_b, self.config)


METHOD = KrrSt
