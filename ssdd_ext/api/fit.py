"""Factor once, predict often."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import checks, ops, plan
from ..kernels import Kernel, Linear, matmul
from ..kernels.products import root
from ..plan import planned as orders
from ..ridge import VECTOR_KINDS, Ridge
from . import precision
from .call import DEFAULT_KERNEL, DEFAULT_RIDGE, UNKNOWN, Call, Info, check_problem, prepare
from .gram import factored_solve, gram
from .posterior import Posterior, deviation, fix_ridge, follows_gradients, one_ridge


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted kernel ridge regression, which predicts for any number of query sets from one factorisation.

    The fit is dual, or primal for a linear kernel with fewer features than support points (the rule of :func:`krr`).
    alpha, weights, x_s and the kernel's tensors have the dtype of the solve: float64 with
    ``solve_dtype=torch.float64``. Only the predictions are rounded to the inputs' dtype, as digits cancel in them.

    Args:
        kernel: the kernel of the fit.
        alpha: dual: (K_ss + lambda I)^-1 Y_s, [..., S, C]; primal: None.
        x_s: dual: the support features [..., S, D]; primal: None.
        weights: primal: (Phi^T Phi + lambda I)^-1 Phi^T Y_s, [..., D (+1), C], with Phi = [sqrt(scale) X_s, sqrt(bias)
            1]; dual: None.
        features: D.
        backend: the backend of the predictions.
        result_dtype: dtype of the predictions.
        solved: returns what the predictive deviation and ``info`` need of the factorisation.
    """

    kernel: Kernel
    alpha: Tensor | None
    x_s: Tensor | None
    weights: Tensor | None
    features: int
    backend: str
    result_dtype: torch.dtype
    solved: Callable[[], tuple[Posterior, Info]] = field(repr=False, compare=False)

    @checks.CachedProperty
    def _solved(self) -> tuple[Posterior, Info]:
        return self.solved()

    @property
    def posterior(self) -> Posterior:
        """What the predictive deviation needs of the factorisation."""
        return self._solved[0]

    @checks.CachedProperty
    def info(self) -> Info:
        """The outcome, Info(status, jitter, condition); the condition number is estimated when it is first read."""
        posterior, outcome = self._solved
        return outcome._replace(condition=precision.condition(posterior.factor))

    def predict(self, x_q: Tensor, return_std: bool = False) -> Any:
        """Predict for new queries.

        Equivalent to the predictions of ``krr(x_s, y_s, x_q)`` with the arguments of :func:`fit`.

        Args:
            x_q: query features [..., Q, D].
            return_std: also return the standard deviation of the Gaussian process whose mean the prediction is, without
                its noise: the root of k(x, x) - k_qs (K_ss + lambda I)^-1 k_sq. Equivalent to scikit-learn's
                ``GaussianProcessRegressor(alpha=lambda).predict(X, return_std=True)``. Default False.

        Returns:
            Predictions [..., Q, C], or (predictions, deviations [..., Q]). Differentiable in x_q and in the arguments
            of :func:`fit`, from the factorisation of the fit.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        checks.tensor("x_q", x_q)
        checks.size("x_q", x_q, -1, self.features, "x_s of the fit")
        coefficients = self.weights if self.alpha is None else self.alpha
        assert coefficients is not None
        checks.same_device(x_s=coefficients, x_q=x_q)
        if return_std:
            one_ridge("return_std", self.posterior.call.ridge)
        with checks.full_precision(x_q):
            query = x_q.to(coefficients.dtype)
            p = self._predict(query, coefficients).to(self.result_dtype)
            return (p, deviation(self._variance(query)).to(self.result_dtype)) if return_std else p

    def _variance(self, query: Tensor) -> Tensor:
        if self.alpha is not None and self.x_s is not None:
            return self.posterior.dual_variance(self.x_s, query, self.kernel, self.backend)
        return self.posterior.primal_variance(_features(self.kernel, query), lambda x: _features(self.kernel, x))

    def _predict(self, query: Tensor, coefficients: Tensor) -> Tensor:
        if self.alpha is None or self.x_s is None:
            root_scale, root_bias = _roots(self.kernel, coefficients.dtype)
            p = root_scale * matmul(query, coefficients[..., : self.features, :])
            p = p + root_bias * coefficients[..., self.features :, :] if coefficients.shape[-2] > self.features else p
        elif isinstance(self.kernel, Linear) and self._is_low_rank(query, self.alpha):
            # K_qs is never formed. s X_q (X_s^T alpha) + b (1^T alpha)
            scale, bias = (_for_matrices(p, query.dtype) for p in self.kernel.parameters)
            p = self._times_weights(query, matmul(self.alpha.mT, self.x_s))
            p = p if isinstance(scale, float) and scale == 1 else scale * p
            if isinstance(bias, Tensor) or bias:
                p = p + bias * self.alpha.sum(-2, keepdim=True)
        else:
            p = gram(query, self.x_s, kernel=self.kernel, backend=self.backend)
            p = matmul(p, self.alpha)
        return p

    def _is_low_rank(self, query: Tensor, alpha: Tensor) -> bool:
        sizes = query.shape[-2], self.features, alpha.shape[-1]
        return orders.predicts_low_rank(alpha.shape[-2], *sizes) or self.features == 0

    def _times_weights(self, query: Tensor, weights: Tensor) -> Tensor:
        """Return query weights^T for weights [..., C, D]; natively on the CPU, which reads queries once."""
        small = query.numel() * weights.shape[-2] < LEAST_NATIVE
        if small or query.is_cuda or query.shape[:-2] != weights.shape[:-2] or self.backend == "torch":
            return matmul(query, weights.mT)
        return gram(query, weights, backend=self.backend)


Number = float | Tensor
LEAST_NATIVE = 1 << 17
"""Multiply-adds of the predictions from which a product of the core saves more than its call takes."""


def _for_matrices(parameter: Number, dtype: torch.dtype) -> Number:
    return parameter.to(dtype)[..., None, None] if isinstance(parameter, Tensor) else parameter


def _roots(kernel: Kernel, dtype: torch.dtype) -> tuple[float | Tensor, float]:
    """Return sqrt(scale), shaped to broadcast against matrices, and sqrt(bias), for a linear kernel whose bias is a
    number."""
    scale, bias = kernel.parameters
    assert not isinstance(bias, Tensor)
    root = scale.to(dtype).sqrt()[..., None, None] if isinstance(scale, Tensor) else math.sqrt(scale)
    return root, math.sqrt(bias)


def _features(kernel: Kernel, x: Tensor) -> Tensor:
    """Return Phi = [sqrt(scale) X, sqrt(bias) 1] [..., S, D (+1)]."""
    root_scale, root_bias = _roots(kernel, x.dtype)
    phi = x * root_scale
    return torch.cat((phi, phi.new_full((*phi.shape[:-1], 1), root_bias)), -1) if root_bias else phi


def _amount(call: Call, x: Tensor) -> Number:
    """Return lambda [...] of a linear kernel, without K_ss: tr(K_ss) = scale |X|^2 + bias S."""
    ridge = call.ridge
    assert ridge is not None
    if ridge.kind == "absolute":
        return ridge.value
    with torch.set_grad_enabled(torch.is_grad_enabled() and not ridge.detach):
        scale, bias = call.kernel.parameters
        trace = scale * x.square().sum((-2, -1)) + bias * x.shape[-2]
        trace = trace.detach() if ridge.detach else trace
    return ridge.value * (trace if ridge.kind == "trace" else trace / x.shape[-2])


def _primal(call: Call, x: Tensor, y: Tensor, root_weights: Tensor | None) -> tuple[Tensor, Posterior, Info]:
    """Return (weights, posterior, info) of the regression, solved in its D (+1) features.

    tr(Phi^T Phi) = tr(K_ss), so lambda and its gradient are those of the dual. Only ``mean_trace`` needs a factor, as
    its mean is over S.
    """
    phi = _features(call.kernel, x)
    amount = _amount(call, x)
    kept = x if follows_gradients(call, x, root_weights) else None
    if root_weights is not None:
        phi, y = phi * root_weights, y * root_weights
        call = replace(call, ridge=Ridge.absolute(amount))
    elif call.ridge is not None and call.ridge.kind == "mean_trace":
        ratio, value = phi.shape[-1] / phi.shape[-2], call.ridge.value
        value = value.to(call.work) * ratio if isinstance(value, Tensor) else value * ratio
        call = replace(call, ridge=replace(call.ridge, value=value))
    transposed = phi.mT
    a = call.run.gram(transposed, None, DEFAULT_KERNEL)
    weights, factor, info = factored_solve(call, a, matmul(transposed, y))
    return weights, Posterior(call, factor, info.jitter, amount + info.jitter, root_weights, kept), info


def fit(
    x_s: Tensor,
    y_s: Tensor,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
    sample_weight: Tensor | None = None,
    on_failure: str = "raise",
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> Fit:
    """Fit a kernel ridge regression once, to predict often.

    Equivalent to ``krr``: ``fit(x_s, y_s).predict(x_q)`` is ``krr(x_s, y_s, x_q)``, and one factorisation serves any
    number of query sets.

    Args:
        x_s: support features [..., S, D]; float32 or float64, or bfloat16/float16, which are computed in float32.
            Batch dimensions of both inputs broadcast.
        y_s: support targets [..., S, C].
        kernel: any kernel, such as ``Linear(scale, bias)``; its hyper-parameters are numbers, or tensors [...] with
            gradients that broadcast over the batch dimensions. Default ``Linear()``.
        ridge: how lambda follows from K_ss; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's.
        sample_weight: weights [..., S] >= 0 of the support points' squared errors, with or without gradient, as in
            scikit-learn's ``KernelRidge.fit``: alpha = (K_ss + lambda diag(1 / w))^-1 Y_s, with lambda of the
            unweighted K_ss. Default None: 1 for each.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference, whose backward inside ``torch.autocast`` rounds to 16 bits; the others keep
            their digits there). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        A :class:`Fit`, differentiable like :func:`krr`; ``Fit.info`` holds the status, the jitter and the condition.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    if backend in ("auto", "native") and sample_weight is None and not check_finite and solve_dtype is None:
        fitted = ops.eager_fit(x_s, y_s, kernel, ridge, on_failure)
        if fitted is not None:
            return _eager(fitted, x_s, kernel, ridge, on_failure, backend)
    tensors = check_problem(x_s, y_s, x_s)
    tensors = {"x_s": tensors["x_s"], "y_s": tensors["y_s"]}
    if sample_weight is not None:
        # A column broadcasts like the targets.
        tensors["sample_weight"] = checks.sample_weight(sample_weight, x_s.shape[-2], "x_s")
    call = prepare("fit", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, True)
    x, y = call.cast(x_s), call.cast(y_s)
    with checks.full_precision(x_s):
        if sample_weight is not None:
            return _fit(call, x, y, backend, root(call.cast(tensors["sample_weight"])))
        return _fit(call, x, y, backend)


def _eager(fitted: ops.Fitted, x_s: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str, backend: str) -> Fit:
    """Return the Fit of a fit by the core alone."""
    dtype = x_s.dtype
    if precision.is_new(dtype, (x_s.shape, kernel.name, ridge.value)):
        precision.warn_if_worthless("fit", precision.condition(fitted.parts[0]), ridge)
    solved = partial(_solved_by_core, fitted, x_s, kernel, ridge, on_failure)
    coefficients, primal = fitted.coefficients, fitted.primal
    alpha, points, weights = (None, None, coefficients) if primal else (coefficients, x_s, None)
    return Fit(kernel, alpha, points, weights, x_s.shape[-1], backend, dtype, solved)


def _solved_by_core(
    fitted: ops.Fitted, x_s: Tensor, kernel: Kernel, ridge: Ridge, on_failure: str
) -> tuple[Posterior, Info]:
    factor, amount, jitter, status = fitted.parts
    batch, dtype, tensors = x_s.shape[:-2], x_s.dtype, {"x_s": x_s}
    call = Call("fit", kernel, ridge, batch, dtype, dtype, on_failure, True, "native", "it can run", tensors)
    follows = fitted.coefficients.requires_grad
    noise: Any = None
    if fitted.primal:
        through_trace = follows and ridge.kind != "absolute" and not ridge.detach
        with torch.set_grad_enabled(through_trace):
            noise = (_amount(call, x_s) if through_trace else amount) + jitter
    return Posterior(call, factor, jitter, noise, None, x_s if follows else None), Info(status, jitter, UNKNOWN)


def _known(posterior: Posterior, outcome: Info) -> tuple[Posterior, Info]:
    return posterior, outcome


def _fit(call: Call, x: Tensor, y: Tensor, backend: str, root_weights: Tensor | None = None) -> Fit:
    kernel, features = call.kernel, x.shape[-1]
    if call.backend == "planned" and root_weights is None:
        alpha, weights, factor, status, jitter = call.run.fit(x, y, kernel, call.ridge, **call.options)
        info = call.check_status(status, jitter, x.shape[-2], factor)
        follows = follows_gradients(call, x)
        noise = None if weights is None else _amount(call, x) + jitter
        posterior = Posterior(call, factor, jitter, noise, None, x if follows else None)
        dual_x_s = x if weights is None else None
        solved = partial(_known, posterior, info)
        return Fit(kernel, alpha, dual_x_s, weights, features, backend, call.result, solved)
    # The root of a bias has no gradient at zero, so a bias that is a tensor stays dual.
    one_value = call.ridge is not None and call.ridge.kind not in VECTOR_KINDS
    if kernel.linear and one_value and not isinstance(kernel.parameters[-1], Tensor):
        bordered = kernel.parameters[-1] != 0
        if plan.is_primal(plan.Problem(x.shape[-2], 0, features, y.shape[-1], True, bordered, x.element_size())):
            weights, posterior, info = _primal(call, x, y, root_weights)
            solved = partial(_known, posterior, info)
            return Fit(kernel, None, None, weights, features, backend, call.result, solved)
    k_ss = call.gram(x)
    posterior_call = call
    if root_weights is not None:
        call, y = fix_ridge(call, k_ss), root_weights * y
        k_ss = root_weights * k_ss * root_weights.mT
    alpha, factor, info = factored_solve(call, k_ss, y)
    kept = x if follows_gradients(posterior_call, x, root_weights) else None
    posterior = Posterior(posterior_call, factor, info.jitter, None, root_weights, kept)
    alpha = alpha if root_weights is None else root_weights * alpha
    return Fit(kernel, alpha, x, None, features, backend, call.result, partial(_known, posterior, info))
