"""Many ridges at once, and the choice among them by leave-one-out or generalised cross-validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import checks, ops, reference
from ..kernels import Kernel, match_parameter, matmul
from ..ops import spectrum
from ..ops.register import is_transformed
from ..ridge import Ridge
from .call import DEFAULT_KERNEL, Call, Info, check_problem, prepare
from .gram import gram

SCORES = ("loo", "gcv")


@dataclass(frozen=True, eq=False)
class RidgePath:
    """Kernel ridge regressions that differ in the ridge only, from one decomposition of K_ss.

    All tensors have the dtype of the solve. Only the results are rounded to the inputs' dtype.

    Args:
        kernel: the kernel of the fit.
        outcome: status and jitter, one entry per problem.
        ridges: lambda [..., R], or [..., R, C] for ``Ridge.per_target``.
        x_s: the support features [..., S, D].
        y_s: the support targets [..., S, C].
        result_dtype: dtype of the results.
        backend: the backend of the predictions.
        k_ss: the Gram matrix [..., S, S].
        decomposition: K_ss in a form that solves for many ridges; None for ``backend="torch"``.
    """

    kernel: Kernel
    outcome: Info = field(repr=False)
    ridges: Tensor
    x_s: Tensor
    y_s: Tensor
    result_dtype: torch.dtype
    backend: str
    k_ss: Tensor = field(repr=False)
    decomposition: spectrum.Decomposition | None = field(repr=False)

    @checks.CachedProperty
    def info(self) -> Info:
        """The outcome, Info(status, jitter, condition), one entry per problem; the condition number is that of the
        ridge for which it is largest, from the eigenvalues."""
        w = torch.linalg.eigvalsh(self.k_ss.detach()) if self.decomposition is None else self.decomposition.bounds
        least = self._shifts.detach().amin((-2, -1))
        return self.outcome._replace(condition=(w.amax(-1) + least) / (w.amin(-1) + least))

    @checks.CachedProperty
    def alpha(self) -> Tensor:
        """(K_ss + lambda I)^-1 Y_s [..., R, S, C], computed when it is first needed."""
        y = self.y_s.unsqueeze(-3)
        if self.decomposition is None:
            return reference.solve_many(self.k_ss, y, self._shifts, "nan")[0]
        return spectrum.solve_many(self.k_ss, y, self._shifts, self.decomposition)

    def _follows(self, k_qs: Tensor) -> bool:
        """Return True if the predictions may require a gradient, or a transform runs."""
        tensors = (k_qs, self.k_ss, self.y_s, self.ridges)
        return is_transformed() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b^T, natively on the CPU."""
        return a @ b.mT if a.is_cuda or self.backend == "planned" else gram(a, b, backend=self.backend)

    @property
    def _shifts(self) -> Tensor:
        """lambda [..., R, C or 1]."""
        return self.ridges if self.ridges.dim() == self.y_s.dim() else self.ridges.unsqueeze(-1)

    def predict(self, x_q: Tensor) -> Tensor:
        """Predict with every ridge.

        Args:
            x_q: query features [..., Q, D].

        Returns:
            Predictions [..., R, Q, C]; differentiable in x_q and in the arguments of :func:`krr_path`.
        """
        checks.tensor("x_q", x_q)
        checks.size("x_q", x_q, -1, self.x_s.shape[-1], "x_s of the path")
        checks.same_device(x_s=self.x_s, x_q=x_q)
        with checks.full_precision(x_q):
            k_qs = gram(x_q.to(self.x_s.dtype), self.x_s, kernel=self.kernel, backend=self.backend)
            # Queries with batch dimensions that the fit lacks share its coefficients.
            shared = k_qs.shape[:-2] != self.k_ss.shape[:-2]
            if self.decomposition is None or shared or self._follows(k_qs) or "alpha" in vars(self):
                return matmul(k_qs.unsqueeze(-3), self.alpha).to(self.result_dtype)
            p = spectrum.predict_many(k_qs, self.y_s, self._shifts, self.decomposition, self._product)
            return p.to(self.result_dtype)

    def loo_residuals(self) -> Tensor:
        """Compute the leave-one-out residuals: y_i minus the prediction at x_i by the fit without point i.

        The closed form is alpha_i / ((K_ss + lambda I)^-1)_ii, with the lambda of all points.

        Returns:
            [..., R, S, C], differentiable in the arguments of :func:`krr_path`.
        """
        return (self.alpha / self._inverse_diagonals()).to(self.result_dtype)

    def loo(self) -> Tensor:
        """Compute the mean over the support points of the squared leave-one-out residuals, [..., R, C]."""
        return self.loo_residuals().square().mean(-2)

    def gcv(self) -> Tensor:
        """Compute the generalised cross-validation of Golub, Heath and Wahba.

        Returns:
            [..., R, C]: S |alpha|^2 / tr((K_ss + lambda I)^-1)^2, which is the mean squared residual divided by the
            squared fraction of the remaining degrees of freedom. Differentiable in the arguments of :func:`krr_path`.
        """
        trace = self._inverse_diagonals().sum(-2)
        s = self.alpha.shape[-2]
        return (s * self.alpha.square().sum(-2) / trace.square()).to(self.result_dtype)

    def best(self, by: str = "loo", per_target: bool = False) -> Ridge:
        """Select the ridge with the lowest score.

        Args:
            by: "loo" (default) or "gcv".
            per_target: select one ridge per target instead of one for the mean over the targets. Default False.

        Returns:
            ``Ridge.absolute(lambda)`` with lambda [...], or ``Ridge.per_target(lambda)`` with lambda [..., C].
        """
        checks.choice("by", by, SCORES)
        with torch.no_grad():
            scores = self.loo() if by == "loo" else self.gcv()
            scores = scores.nan_to_num(nan=float("inf"))
        ridges = self.ridges if self.ridges.dim() == scores.dim() else self.ridges.unsqueeze(-1)
        if per_target:
            at = scores.argmin(-2, keepdim=True)
            return Ridge.per_target(ridges.expand(scores.shape).gather(-2, at).squeeze(-2))
        if ridges.shape[-1] != 1:
            raise ValueError("per_target: expected True, got False, for ridges that differ per target")
        at = scores.mean(-1).argmin(-1, keepdim=True)
        return Ridge.absolute(ridges.squeeze(-1).gather(-1, at).squeeze(-1))

    def _inverse_diagonals(self) -> Tensor:
        shifts = self._shifts
        if self.decomposition is not None:
            return spectrum.inverse_diagonals(self.k_ss, shifts, self.decomposition)
        eye = torch.eye(self.k_ss.shape[-1], dtype=self.k_ss.dtype, device=self.k_ss.device)
        many = self.k_ss.unsqueeze(-3).unsqueeze(-3) + shifts[..., None, None] * eye
        return torch.linalg.inv(many).diagonal(dim1=-2, dim2=-1).mT


def krr_path(
    x_s: Tensor,
    y_s: Tensor,
    *,
    ridges: Ridge,
    kernel: Kernel = DEFAULT_KERNEL,
    on_failure: str = "raise",
    check_finite: bool = False,
    backend: str = "auto",
    solve_dtype: torch.dtype | None = None,
) -> RidgePath:
    """Fit kernel ridge regressions for many ridges, from one decomposition of K_ss.

    Equivalent to one ``fit(x_s, y_s, ridge=...)`` per ridge. The result predicts with all of them, and selects by
    leave-one-out or generalised cross-validation: ``krr_path(...).best()`` is a ridge for :func:`krr`.

    Args:
        x_s: support features [..., S, D]; float32 or float64, or bfloat16/float16, which are computed in float32.
            Batch dimensions of both inputs broadcast.
        y_s: support targets [..., S, C].
        ridges: a :class:`Ridge` of a tensor [..., R] with or without gradient, such as
            ``Ridge.absolute(torch.logspace(-3, 3, 100))``, or ``Ridge.per_target`` of one [..., R, C].
        kernel: any kernel; its hyper-parameters are numbers, or tensors [...] with gradients that broadcast over the
            batch dimensions. Default ``Linear()``.
        on_failure: "raise" (default) raises a FactorizationError if K_ss + lambda I is not positive definite for a
            ridge (one synchronisation on CUDA); "jitter" adds a multiple of the mean diagonal for all ridges, a
            constant for the gradient; "nan" fills the results of the problem with NaN.
        check_finite: refuse NaN and Inf in the inputs (one synchronisation per tensor on CUDA). Default False.
        backend: "auto" (default) or "planned": the decomposition in PyTorch; "torch": one factorisation per ridge, for
            tests. "native" is refused.
        solve_dtype: torch.float64 computes float32 inputs in float64 and returns float32. Default None.

    Returns:
        A :class:`RidgePath`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        FactorizationError: with ``on_failure="raise"``, for a problem that is not positive definite.
    """
    own = _own_dimensions(ridges)
    check_problem(x_s, y_s, x_s)
    tensors = {"x_s": x_s, "y_s": y_s}
    if backend == "native":
        raise ValueError("backend: 'native' cannot run krr_path: it has no eigendecomposition; use backend='auto'")
    call = prepare("krr_path", tensors, kernel, None, on_failure, check_finite, backend, solve_dtype, True)
    batch = checks.batch_shape(inputs=call.batch, ridges=ridges.value.shape[:-own])  # type: ignore[union-attr]
    if batch != call.batch:
        raise ValueError(
            f"ridges: expected a tensor of {own} dimensions more than the batch {tuple(call.batch)} of the inputs, got "
            f"{checks.describe(ridges.value)}"
        )
    x, y = call.cast(x_s), call.cast(y_s)
    with checks.full_precision(x_s):
        return fit_path(call, x, y, ridges, backend)


def fit_path(call: Call, x: Tensor, y: Tensor, ridges: Ridge, backend: str) -> RidgePath:
    """Return the path of checked arguments."""
    k_ss = call.gram(x)
    value: Any = match_parameter(ridges.value, k_ss)
    if ridges.kind == "per_target":
        ridges.check_sizes(*y.shape[-2:])
        amounts = value.expand(*call.batch, *value.shape[-2:])
    else:
        each: Any = ridges.amount(k_ss, value.expand(*call.batch, value.shape[-1]).movedim(-1, 0))
        amounts = each.movedim(0, -1)
    shifts = amounts if ridges.kind == "per_target" else amounts.unsqueeze(-1)
    alpha: Tensor | None = None
    found: spectrum.Decomposition | None = None
    if call.backend == "torch":
        alpha, status, jitter = reference.solve_many(k_ss, y.unsqueeze(-3), shifts, call.on_failure)
    else:
        call = replace(call, backend="planned")  # a failure then raises here instead of in an op
        found, status, jitter = spectrum.decompose(k_ss, shifts, call.on_failure)
    info = call.check_status(status, jitter, k_ss.shape[-1])
    path = RidgePath(call.kernel, info, amounts, x, y, call.result, backend, k_ss, found)
    if alpha is not None:
        vars(path)["alpha"] = alpha  # a jitter is in it
    return path


def predict_per_target(
    call: Call, x_s: Tensor, y_s: Tensor, x_q: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return (predictions, status, jitter) for one ridge per target, with the products on the native core.

    None if the core cannot run, or if another backend was asked for.
    """
    ridge = call.ridge
    if ridge is None or ridge.kind != "per_target" or backend != "auto" or not x_s.is_cpu:
        return None
    if torch.compiler.is_compiling() or ops.unavailable(x_s.device, call.kernel) is not None:
        return None
    assert isinstance(ridge.value, Tensor)
    ridge.check_sizes(*y_s.shape[-2:])
    path = fit_path(replace(call, backend="native"), x_s, y_s, Ridge.per_target(ridge.value.unsqueeze(-2)), backend)
    return path.predict(x_q).squeeze(-3), path.outcome.status, path.outcome.jitter


def _own_dimensions(ridges: Any) -> int:
    """Return the number of dimensions of the ridges' tensor after its batch dimensions."""
    allowed = isinstance(ridges, Ridge) and ridges.kind != "noise"
    own = 2 if allowed and ridges.kind == "per_target" else 1
    if not allowed or not isinstance(ridges.value, Tensor) or ridges.value.dim() < own:
        got = checks.describe(ridges.value if isinstance(ridges, Ridge) else ridges)
        got = f"Ridge.{ridges.kind} of {got}" if isinstance(ridges, Ridge) else got
        raise TypeError(
            f"ridges: expected a Ridge of a tensor, such as Ridge.absolute(torch.logspace(-3, 3, 100)), or "
            f"Ridge.per_target of one [R, C], got {got}"
        )
    if ridges.value.shape[-own] == 0:
        raise ValueError(f"ridges: expected at least one ridge, got {checks.describe(ridges.value)}")
    return own
