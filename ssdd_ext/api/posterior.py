"""What a fit keeps of its factorisation: the predictive variance, the marginal likelihood, weights of points."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import checks, ops, reference
from ..kernels import Kernel, for_matrices, match_parameter, matmul
from ..kernels.products import root
from ..ridge import VECTOR_KINDS, Ridge
from .call import DEFAULT_KERNEL, DEFAULT_RIDGE, Call, check_problem, prepare
from .gram import factored_solve, gram


@dataclass(frozen=True, eq=False)
class Posterior:
    """The factor of one fit, and what its gradient needs.

    Args:
        call: the call of the fit.
        factor: the factor of K_ss + lambda I, or of Phi^T Phi + lambda I [..., n, n].
        jitter: [...]; what was added to the diagonal in addition to the ridge.
        noise: primal: lambda plus the jitter [...]; dual: None.
        root_weights: the square roots of the weights of the support points [..., S, 1], or None.
        x_s: the support features, if a gradient may be required; otherwise None.
    """

    call: Call
    factor: Tensor
    jitter: Tensor
    noise: Any
    root_weights: Tensor | None
    x_s: Tensor | None

    def matrix(self, k_ss: Tensor) -> Tensor:
        """Return the matrix that was factored, from K_ss; differentiable."""
        ridge = self.call.ridge
        assert ridge is not None
        shift = ridge.diagonal(k_ss, match_parameter(ridge.value, k_ss))
        if self.root_weights is not None:
            k_ss = self.root_weights * k_ss * self.root_weights.mT
        eye = torch.eye(k_ss.shape[-1], dtype=k_ss.dtype, device=k_ss.device)
        return k_ss + (shift + self.jitter[..., None])[..., None] * eye

    def _quadratic(self, matrix: Any, right: Tensor) -> Tensor:
        """Return b^T A^-1 b per column of right [..., n, Q], [..., Q]."""
        module: Any = reference if self.call.backend == "torch" else ops
        a = matrix() if self.x_s is not None else None
        if self.factor.dim() == 2 and right.dim() > 2:  # the queries of a batch are columns of one system
            columns = right.movedim(-2, 0)
            flat: Tensor = module.quadratic(a, columns.reshape(len(columns), -1), self.factor)
            return flat.reshape(columns.shape[1:])
        batch = torch.broadcast_shapes(self.factor.shape[:-2], right.shape[:-2])
        factor = self.factor.expand(*batch, *self.factor.shape[-2:])
        a = None if a is None else a.expand(factor.shape)
        value: Tensor = module.quadratic(a, right.expand(*batch, *right.shape[-2:]), factor)
        return value

    def dual_variance(self, x_s: Tensor, x_q: Tensor, kernel: Kernel, backend: str) -> Tensor:
        """Return k(x, x) - k_q^T A^-1 k_q [..., Q]."""
        k_sq = gram(x_s, x_q, kernel=kernel, backend=backend)
        if self.root_weights is not None:
            k_sq = self.root_weights * k_sq
        taken = self._quadratic(lambda: self.matrix(gram(x_s, kernel=kernel, backend=backend)), k_sq)
        return reference.diagonal(x_q, kernel).squeeze(-1) - taken

    def primal_variance(self, phi_q: Tensor, phi_of: Any) -> Tensor:
        """Return lambda phi^T (Phi^T Phi + lambda I)^-1 phi [..., Q], in which nothing cancels."""

        def matrix() -> Tensor:
            phi = phi_of(self.x_s)
            phi = phi if self.root_weights is None else phi * self.root_weights
            eye = torch.eye(phi.shape[-1], dtype=phi.dtype, device=phi.device)
            return matmul(phi.mT, phi) + for_matrices(self.noise) * eye

        noise = self.noise[..., None] if isinstance(self.noise, Tensor) else self.noise
        return noise * self._quadratic(matrix, phi_q.mT)


def deviation(variance: Tensor) -> Tensor:
    """Return the standard deviation. A variance that rounding made negative counts as 0, without gradient."""
    return root(variance.clamp(min=0))


def one_ridge(name: str, ridge: Ridge | None) -> None:
    """Raise for one ridge per target, as the targets then have no process in common."""
    if isinstance(ridge, Ridge) and ridge.kind == "per_target":
        raise ValueError(
            f"{name}: expected one ridge for all targets, got Ridge.per_target, under which each target has a process "
            f"of its own; call it once per target, with Ridge.absolute(v[c])"
        )


def follows_gradients(call: Call, *tensors: Tensor | None) -> bool:
    """Return True if a result of these tensors and the hyper-parameters may require a gradient.

    Under vmap a tensor does not say so, although a transform outside it may differentiate.
    """
    if checks.is_transformed():
        return True
    values = (*call.kernel.parameters, None if call.ridge is None else call.ridge.value, *tensors)
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in values)


def fix_ridge(call: Call, k_ss: Tensor) -> Call:
    """Return the call with lambda as a value, so that weights of points do not change it."""
    assert call.ridge is not None
    if call.ridge.kind in VECTOR_KINDS:
        return call
    amount = call.ridge.amount(k_ss, match_parameter(call.ridge.value, k_ss))
    return replace(call, ridge=Ridge.absolute(amount))


def log_marginal_likelihood(
    x_s: Tensor,
    y_s: Tensor,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    on_failure: str = "raise",
    return_info: bool = False,
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Any:
    """Compute log p(Y_s) of a Gaussian process with covariance K_ss + lambda I, summed over the C targets.

    Equivalent to ``MultivariateNormal(zeros(S), k_ss + lam * eye(S)).log_prob(y_s.mT).sum(-1)`` of
    ``torch.distributions``, and to the ``log_marginal_likelihood`` of scikit-learn's GaussianProcessRegressor with
    ``alpha=lam``. Its maximum over the hyper-parameters is the usual way to learn them.

    Args:
        x_s: points [..., S, D]; float32 or float64, or bfloat16/float16, which are computed in float32.
            Batch dimensions of both inputs broadcast.
        y_s: observed values [..., S, C].
        kernel: any kernel; its hyper-parameters are numbers, or tensors [...] with gradients that broadcast over the
            batch dimensions. Default ``Linear()``.
        ridge: the variance of the noise; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's; Gaussian
            processes use ``Ridge.absolute(variance)``.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        return_info: return (value, Info(status, jitter, condition)). Default False.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference, whose backward inside ``torch.autocast`` rounds to 16 bits; the others keep
            their digits there). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        One number per problem, [...]. One factorisation; gradients to x_s, y_s and tensor hyper-parameters.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    one_ridge("log_marginal_likelihood", ridge)
    check_problem(x_s, y_s, x_s)
    tensors = {"x_s": x_s, "y_s": y_s}
    call = prepare(
        "log_marginal_likelihood", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, return_info
    )
    x, y = call.cast(x_s), call.cast(y_s)
    with checks.full_precision(x_s):
        k_ss = call.gram(x)
        alpha, factor, info = factored_solve(call, k_ss, y)
        follows = x if follows_gradients(call, x) else None
        posterior = Posterior(call, factor, info.jitter, None, None, follows)
        module: Any = reference if call.backend == "torch" else ops
        determinant = module.log_determinant(None if follows is None else posterior.matrix(k_ss), factor)
        s, c = y.shape[-2:]
        value = -0.5 * ((y * alpha).sum((-2, -1)) + c * (determinant + s * math.log(2 * math.pi)))
    return call.finish(value, info)
