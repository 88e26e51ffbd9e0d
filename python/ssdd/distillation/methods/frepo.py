"""FRePo (Zhou et al., NeurIPS 2022): labels, through a pool of networks trained on the pairs."""

from __future__ import annotations

from torch import Tensor

import ssdd_ext

from ._base import Step, embed
from ._codes import CodeMethod


class Frepo(CodeMethod):
    """Label codes by kernel ridge regression: half the squared error, summed over classes, and a label margin.

    A code is the one-hot label less 1 / classes; those of X_s start divided by sqrt(classes / 10). The kernel is f f^T
    without a bias, λ = ``frepo.ridge`` tr(K)/S with the gradient through the trace.
    """

    ridge = "frepo.ridge"

    def start(self, targets: Tensor) -> Tensor:
        return targets / (targets.shape[1] / 10) ** 0.5

    def loss(self, step: Step) -> Tensor:
        f_s, f_b = embed(step)
        ridge = ssdd_ext.Ridge.mean_trace(self.config.frepo.ridge)
        # "nan": a failed factorisation and a loss that overflows end the run in the same way.
        error = ssdd_ext.krr_mse(f_s, step.y_s, f_b, step.y_b, ridge=ridge, on_failure="nan").mean()
        return 0.5 * step.y_s.shape[1] * error + self.config.frepo.margin * label_margin(step.y_s)


def label_margin(y_s: Tensor) -> Tensor:
    """The mean over Y_s [S, C] of -min(largest - second largest, 1 / C): low if each code has a clear largest value."""
    largest = y_s.topk(2, dim=1).values
    return -(largest[:, 0] - largest[:, 1]).clamp_max(1 / y_s.shape[1]).mean()


METHOD = Frepo
