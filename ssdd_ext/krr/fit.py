"""Factor once, predict often."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks, ops, reference
from ..kernels import Kernel, Linear
from ..ridge import Ridge
from .call import DEFAULT_RIDGE, NO_KERNEL, Info, check_problem, prepare
from .gram import gram, solve


@dataclass(frozen=True)
class Fit:
    """A fitted kernel ridge regression: predicts for any number of query sets from one factorisation.

    alpha: [..., S, C] dual coefficients (K_ss + lambda I)^-1 Y_s. x_s: [..., S, D]. kernel: as given to fit.
    info: Info(status, jitter).
    """

    alpha: Tensor
    x_s: Tensor
    kernel: Kernel
    info: Info
    backend: str
    result_dtype: torch.dtype

    def predict(self, x_q: Tensor) -> Tensor:
        """Predictions [..., Q, C] for x_q [..., Q, D]; differentiable in x_q and in what fit was given."""
        checks.tensor("x_q", x_q)
        checks.size("x_q", x_q, -1, self.x_s.shape[-1], "x_s of the fit")
        checks.same_device(x_s=self.x_s, x_q=x_q)
        query = x_q.to(self.alpha.dtype)
        if isinstance(self.kernel, Linear):
            # Low rank: K_qs is never formed. s X_q (X_s^T alpha) + b (1^T alpha)
            scale, bias = (
                p.to(query.dtype)[..., None, None] if isinstance(p, Tensor) else p for p in self.kernel.parameters
            )
            p = scale * (query @ (self.x_s.mT @ self.alpha)) + bias * self.alpha.sum(-2, keepdim=True)
        else:
            p = gram(query, self.x_s, kernel=self.kernel, backend=self.backend) @ self.alpha
        return p.to(self.result_dtype)


def fit(
    x_s: Tensor,
    y_s: Tensor,
    *,
    kernel: Kernel = NO_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Fit:
    """Factor once, predict often: ``fit(x_s, y_s).predict(x_q)`` equals ``krr(x_s, y_s, x_q)``.

    Arguments as in :func:`krr`. Returns a :class:`Fit`, differentiable like :func:`krr`.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    tensors = check_problem(x_s, y_s, x_s)
    tensors = {"x_s": tensors["x_s"], "y_s": tensors["y_s"]}
    call = prepare("fit", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype)
    x, y = call.cast(x_s), call.cast(y_s)
    if call.native:
        k_ss = ops.gram(x, None, call.hyper, call.values, kernel.name)
    else:
        k_ss = reference.gram(x, None, kernel, call.hyper, call.values)
    alpha, info = solve(call, k_ss, y, True)
    return Fit(alpha.to(call.work), x, kernel, info, backend, call.result)
