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
    """A fitted kernel ridge regression: predicts for any number of query sets from one factorisation.

    kernel: as given to fit. info: Info(status, jitter). Dual: x_s [..., S, D] and alpha [..., S, C] =
    (K_ss + lambda I)^-1 Y_s; weights is None. Primal, for a linear kernel of fewer features than support points (the
    rule of :func:`krr`): weights [..., D (+1), C] = (Phi^T Phi + lambda I)^-1 Phi^T Y_s with the rows of
    Phi = [sqrt(scale) X_s, sqrt(bias) 1]; alpha and x_s are None.

    alpha, weights, x_s and the kernel's tensors have the dtype that was solved in: float64 under
    ``solve_dtype=torch.float64``. Their digits cancel in the predictions, which alone are rounded to the inputs' dtype.
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
        """Predictions [..., Q, C] for x_q [..., Q, D]; differentiable in x_q and in what fit was given."""
        checks.tensor("x_q", x_q)
        checks.size("x_q", x_q, -1, self.features, "x_s of the fit")
        held = self.weights if self.alpha is None else self.alpha
        assert held is not None
        checks.same_device(x_s=held, x_q=x_q)
        with checks.full_precision(x_q):
            return self._predict(x_q.to(held.dtype), held).to(self.result_dtype)

    def _predict(self, query: Tensor, held: Tensor) -> Tensor:
        if self.alpha is None or self.x_s is None:
            root_scale, root_bias = _roots(self.kernel, held.dtype)
            p = root_scale * (query @ held[..., : self.features, :])
            p = p + root_bias * held[..., self.features :, :] if held.shape[-2] > self.features else p
        elif isinstance(self.kernel, Linear):
            # Low rank: K_qs is never formed. s X_q (X_s^T alpha) + b (1^T alpha)
            scale, bias = (_for_matrices(p, query.dtype) for p in self.kernel.parameters)
            p = self._times_weights(query, self.alpha.mT @ self.x_s)
            p = p if isinstance(scale, float) and scale == 1 else scale * p
            if isinstance(bias, Tensor) or bias:
                p = p + bias * self.alpha.sum(-2, keepdim=True)
        else:
            p = gram(query, self.x_s, kernel=self.kernel, backend=self.backend) @ self.alpha
        return p

    def _times_weights(self, query: Tensor, weights: Tensor) -> Tensor:
        """query weights^T for weights [..., C, D]; of a batch on the CPU natively, which reads the queries once."""
        if query.is_cuda or query.dim() < 3 or query.shape[:-2] != weights.shape[:-2] or self.backend == "torch":
            return query @ weights.mT
        return gram(query, weights, backend=self.backend)


def _for_matrices(parameter: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return parameter.to(dtype)[..., None, None] if isinstance(parameter, Tensor) else parameter


def _roots(kernel: Kernel, dtype: torch.dtype) -> tuple[float | Tensor, float]:
    """sqrt(scale), ready to broadcast against matrices, and sqrt(bias), of a linear kernel with a number for bias."""
    scale, bias = kernel.parameters
    assert not isinstance(bias, Tensor)
    root = scale.to(dtype).sqrt()[..., None, None] if isinstance(scale, Tensor) else math.sqrt(scale)
    return root, math.sqrt(bias)


def _primal(call: Call, x: Tensor, y: Tensor) -> tuple[Tensor, Info]:
    """(weights, info): the regression solved in its D (+1) features. tr(Phi^T Phi) = tr(K_ss), so lambda and its
    gradient are those of the dual; only the mean over S of ``mean_trace`` has to be kept."""
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
        info = call.checked(status, jitter, x.shape[-2])
        return Fit(kernel, info, alpha, x if weights is None else None, weights, features, backend, call.result)
    # A bias that is a tensor may be zero, at which its root has no gradient: that one stays dual.
    if kernel.linear and not isinstance(kernel.parameters[-1], Tensor):
        bordered = kernel.parameters[-1] != 0
        if plan.is_primal(plan.Problem(x.shape[-2], 0, features, y.shape[-1], True, bordered, x.element_size())):
            weights, info = _primal(call, x, y)
            return Fit(kernel, info, None, None, weights, features, backend, call.result)
    alpha, info = solve(call, call.run.gram(x, None, kernel), y)
    return Fit(kernel, info, alpha, x, None, features, backend, call.result)
