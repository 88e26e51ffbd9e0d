"""Factor once, predict often."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import checks, plan
from ..kernels import Kernel, Linear
from ..ridge import Ridge
from .call import DEFAULT_KERNEL, DEFAULT_RIDGE, Call, Info, check_problem, prepare
from .gram import gram, solve


@dataclass(frozen=True)
class Fit:
    """A fitted kernel ridge regression, which predicts for any number of query sets from one factorisation.

    The fit is dual, or primal for a linear kernel with fewer features than support points (the rule of :func:`krr`).
    alpha, weights, x_s and the kernel's tensors have the dtype of the solve: float64 with
    ``solve_dtype=torch.float64``. Only the predictions are rounded to the inputs' dtype, as digits cancel in them.

    Args:
        kernel: the kernel of the fit.
        info: Info(status, jitter).
        alpha: dual: (K_ss + lambda I)^-1 Y_s, [..., S, C]; primal: None.
        x_s: dual: the support features [..., S, D]; primal: None.
        weights: primal: (Phi^T Phi + lambda I)^-1 Phi^T Y_s, [..., D (+1), C], with Phi = [sqrt(scale) X_s, sqrt(bias)
            1]; dual: None.
        features: D.
        backend: the backend of the predictions.
        result_dtype: dtype of the predictions.
    """

    kernel: Kernel
    info: Info
    alpha: Tensor | None
    x_s: Tensor | None
    weights: Tensor | None
    features: int
    backend: str
    result_dtype: torch.dtype

    def predict(self, x_q: Tensor) -> Tensor:
        """Predict for new queries.

        Equivalent to the predictions of ``krr(x_s, y_s, x_q)`` with the arguments of :func:`fit`.

        Args:
            x_q: query features [..., Q, D].

        Returns:
            Predictions [..., Q, C], differentiable in x_q and in the arguments of :func:`fit`.
        """
        checks.tensor("x_q", x_q)
        checks.size("x_q", x_q, -1, self.features, "x_s of the fit")
        coefficients = self.weights if self.alpha is None else self.alpha
        assert coefficients is not None
        checks.same_device(x_s=coefficients, x_q=x_q)
        with checks.full_precision(x_q):
            return self._predict(x_q.to(coefficients.dtype), coefficients).to(self.result_dtype)

    def _predict(self, query: Tensor, coefficients: Tensor) -> Tensor:
        if self.alpha is None or self.x_s is None:
            root_scale, root_bias = _roots(self.kernel, coefficients.dtype)
            p = root_scale * (query @ coefficients[..., : self.features, :])
            p = p + root_bias * coefficients[..., self.features :, :] if coefficients.shape[-2] > self.features else p
        elif isinstance(self.kernel, Linear):
            # Low rank: K_qs is never formed. s X_q (X_s^T alpha) + b (1^T alpha)
            scale, bias = (_for_matrices(p, query.dtype) for p in self.kernel.parameters)
            p = scale * (query @ (self.x_s.mT @ self.alpha)) + bias * self.alpha.sum(-2, keepdim=True)
        else:
            p = gram(query, self.x_s, kernel=self.kernel, backend=self.backend) @ self.alpha
        return p


def _for_matrices(parameter: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return parameter.to(dtype)[..., None, None] if isinstance(parameter, Tensor) else parameter


def _roots(kernel: Kernel, dtype: torch.dtype) -> tuple[float | Tensor, float]:
    """Return sqrt(scale), shaped to broadcast against matrices, and sqrt(bias), for a linear kernel whose bias is a
    number."""
    scale, bias = kernel.parameters
    assert not isinstance(bias, Tensor)
    root = scale.to(dtype).sqrt()[..., None, None] if isinstance(scale, Tensor) else math.sqrt(scale)
    return root, math.sqrt(bias)


def _primal(call: Call, x: Tensor, y: Tensor) -> tuple[Tensor, Info]:
    """Return (weights, info) of the regression, solved in its D (+1) features.

    tr(Phi^T Phi) = tr(K_ss), so lambda and its gradient are those of the dual. Only ``mean_trace`` needs a factor, as
    its mean is over S.
    """
    root_scale, root_bias = _roots(call.kernel, call.work)
    phi = x * root_scale
    if root_bias:
        phi = torch.cat((phi, phi.new_full((*phi.shape[:-1], 1), root_bias)), -1)
    if call.ridge is not None and call.ridge.kind == "mean_trace":
        ratio, value = phi.shape[-1] / phi.shape[-2], call.ridge.value
        value = value.to(call.work) * ratio if isinstance(value, Tensor) else value * ratio
        call = replace(call, ridge=replace(call.ridge, value=value))
    transposed = phi.mT
    a = call.run.gram(transposed, None, DEFAULT_KERNEL)
    weights, info = solve(call, a, transposed @ y)
    return weights, info


def fit(
    x_s: Tensor,
    y_s: Tensor,
    *,
    kernel: Kernel = DEFAULT_KERNEL,
    ridge: Ridge | None = None,
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
        kernel: ``Linear(scale, bias)`` or ``RBF(lengthscale)``; numbers, or tensors [...] with gradients that broadcast
            over the batch dimensions. Default ``Linear()``.
        ridge: how lambda follows from K_ss; see :class:`Ridge`. Default ``Ridge.trace(1e-6)``, KRR-ST's.
        on_failure: "raise" (default) raises a FactorizationError (one synchronisation on CUDA, refused under graph
            capture); "jitter" retries the problems that failed with a growing multiple of their mean diagonal, a
            constant for the gradient; "nan" fills their results with NaN. The last two never synchronise.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default: native, or planned PyTorch if the native core cannot run), "native", "planned", or
            "torch" (the plain reference). A backend that cannot run raises a ValueError that says why.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        A :class:`Fit`, differentiable like :func:`krr`; ``Fit.info`` holds the status and the jitter.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    ridge = DEFAULT_RIDGE if ridge is None else ridge
    tensors = check_problem(x_s, y_s, x_s)
    tensors = {"x_s": tensors["x_s"], "y_s": tensors["y_s"]}
    call = prepare("fit", tensors, kernel, ridge, on_failure, check_finite, backend, solve_dtype, True)
    x, y = call.cast(x_s), call.cast(y_s)
    with checks.full_precision(x_s):
        return _fit(call, x, y, backend)


def _fit(call: Call, x: Tensor, y: Tensor, backend: str) -> Fit:
    kernel, features = call.kernel, x.shape[-1]
    if call.backend == "planned":
        alpha, weights, status, jitter = call.run.fit(x, y, kernel, call.ridge, **call.options)
        info = call.check_status(status, jitter, x.shape[-2])
        return Fit(kernel, info, alpha, x if weights is None else None, weights, features, backend, call.result)
    # The root of a bias has no gradient at zero, so a bias that is a tensor stays dual.
    if kernel.linear and not isinstance(kernel.parameters[-1], Tensor):
        bordered = kernel.parameters[-1] != 0
        if plan.is_primal(plan.Problem(x.shape[-2], 0, features, y.shape[-1], True, bordered, x.element_size())):
            weights, info = _primal(call, x, y)
            return Fit(kernel, info, None, None, weights, features, backend, call.result)
    alpha, info = solve(call, call.run.gram(x, None, kernel), y)
    return Fit(kernel, info, alpha, x, None, features, backend, call.result)
