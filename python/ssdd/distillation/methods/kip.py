"""KIP (Nguyen et al., ICLR 2021): label codes, and the kernel of an infinitely wide network in place of networks."""

from __future__ import annotations

import torch
from torch import Tensor

import ssdd_ext

from ..networks import Untrained
from ..pool import Pool
from ._base import Step
from ._codes import CodeMethod


class Kip(CodeMethod):
    """Half the mean squared error of kernel ridge regression on pixels, with the NTK or the NNGP kernel of a fully
    connected ReLU network; λ = ``kip.ridge`` tr(K)/S with the gradient through the trace, in float64."""

    shares = ("batch",)
    ridge = "kip.ridge"

    def networks(self, generator: torch.Generator) -> Pool:
        return Untrained(self.job, generator, count=0)

    def loss(self, step: Step) -> Tensor:
        config = self.config.kip
        kind = {"ntk": ssdd_ext.NTK, "nngp": ssdd_ext.NNGP}[config.kernel]
        kernel = kind(config.depth, config.w_std, config.b_std)
        x_s, x_b, y_s, y_b = (x.flatten(1).double() for x in (step.x_s, step.x_b, step.y_s, step.y_b))
        k_ss, k_bs = ssdd_ext.gram(x_s, kernel=kernel), ssdd_ext.gram(x_b, x_s, kernel=kernel)
        ridge = ssdd_ext.Ridge.mean_trace(config.ridge)
        loss = 0.5 * ssdd_ext.krr_mse_from_gram(k_ss, y_s, k_bs, y_b, ridge=ridge, on_failure="nan")
        return loss.to(step.x_s.dtype)


METHOD = Kip
