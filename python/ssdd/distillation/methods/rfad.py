"""RFAD (Loo et al., NeurIPS 2022): label codes, and random features of the NNGP kernel in place of the kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ssdd_ext

from ...models import frozen_together
from ..networks import Normal
from ..pool import Pool
from ._base import Step
from ._codes import CodeMethod


class Rfad(CodeMethod):
    """The features of several random networks, joined and divided by the root of their number: K = 2 f f^T + 0.01.

    λ = ``rfad.ridge`` tr(K)/S with the gradient through the trace, solved in float64. The loss is the cross-entropy of
    exp(k) times the predictions, where k is learned (Platt scaling), or half the mean squared error. Every step starts
    new networks: the student with normal weights of variance 2 / inputs and biases of standard deviation 0.1. Its
    BatchNorm layers, which have seen no image, change nothing.
    """

    shares = ("batch",)
    ridge = "rfad.ridge"

    def parameters(self) -> dict[str, tuple[Tensor, float]]:
        return {"platt": (torch.zeros(()), self.config.rfad.platt_lr)} if self.config.rfad.platt else {}

    def networks(self, generator: torch.Generator) -> Pool:
        return Normal(self.job, generator, self.config.rfad.networks)

    def loss(self, step: Step) -> Tensor:
        features = frozen_together(step.networks)
        f_s = features(step.x_s).flatten(1)
        with torch.no_grad():
            f_b = features(step.x_b).flatten(1)
        # f is divided by the root of its length, so the kernel is divided by its length.
        kernel, ridge = ssdd_ext.Linear(2.0 / f_s.shape[1], 0.01), ssdd_ext.Ridge.mean_trace(self.config.rfad.ridge)
        how: dict[str, Any] = {"kernel": kernel, "ridge": ridge, "on_failure": "nan", "solve_dtype": torch.float64}
        if not self.config.rfad.platt:
            return 0.5 * ssdd_ext.krr_mse(f_s, step.y_s, f_b, step.y_b, **how)
        one_hot = (step.y_b > 0).to(step.y_b.dtype)
        scale = step.learned["platt"].exp()
        return ssdd_ext.krr_cross_entropy(f_s, step.y_s, f_b, one_hot, scale=scale, **how)


METHOD = Rfad
