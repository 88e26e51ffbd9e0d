"""Kernel ridge regression with scikit-learn's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..kernels import Kernel
from .arrays import FLOATS, check_alpha, check_weights, to_torch
from .kernels import KernelFunction
from .problem import Problem, Samples, Solution, Spectrum

SPARSE = ("csr", "csc")


class KernelRidge(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Kernel ridge regression: a replacement for ``sklearn.kernel_ridge.KernelRidge``.

    Equivalent to that class for the arguments that both have, with the same attributes. The linear kernel is solved in
    its features if there are fewer of them than samples. Linear and RBF kernels of dense samples, and every kernel of
    ``ssdd_ext``, are computed by this package; all others by scikit-learn.

    Args:
        alpha: ridge >= 0 that is added to the diagonal of the Gram matrix, ``Ridge.absolute(alpha)``; or one number per
            target. Default 1.
        kernel: "linear", "rbf", "poly", "polynomial", "laplacian", "cosine", "chi2", "precomputed", a callable of two
            samples, or a kernel of ``ssdd_ext`` such as ``RBF(2.0)``. "sigmoid" and "additive_chi2" are not positive
            definite and are refused. Default "linear".
        gamma: of the kernels rbf, poly, laplacian and chi2. Default None: scikit-learn's default of the kernel.
        degree: of the kernel poly. Default 3.
        coef0: of the kernel poly. Default 1.
        kernel_params: keywords of a callable. Default None.
        fit_intercept: add an intercept that the ridge does not shrink. Default False, as in scikit-learn.

    After ``fit`` it has ``dual_coef_`` [S] or [S, C], ``X_fit_`` [S, D], ``intercept_`` (0.0, a number, or [C]) and
    ``n_features_in_``.

    Raises:
        TypeError, ValueError: in ``fit``, naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        kernel: str | Kernel | Callable[..., float] = "linear",
        gamma: float | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: dict[str, Any] | None = None,
        fit_intercept: bool = False,
    ) -> None:
        self.alpha = alpha
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params
        self.fit_intercept = fit_intercept

    def __sklearn_tags__(self) -> Any:
        return kernel_tags(super().__sklearn_tags__(), self.kernel)

    def _function(self) -> KernelFunction:
        return KernelFunction(self.kernel, self.gamma, self.degree, self.coef0, self.kernel_params)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KernelRidge:
        """Fit the regression.

        Args:
            X: samples [S, D], dense or sparse; float32 is computed in float32, all else in float64. For
                kernel="precomputed" the Gram matrix [S, S].
            y: targets [S] or [S, C].
            sample_weight: weights >= 0 of the squared errors, a number or [S]. Default None: 1 for each.

        Returns:
            This estimator.
        """
        function = self._function()
        X, y = validate_data(self, X, y, accept_sparse=SPARSE, multi_output=True, y_numeric=True, dtype=FLOATS)
        check_square(function, X)
        weights = check_weights(sample_weight, X)
        alphas = check_alpha("alpha", self.alpha)
        targets = targets_of(X, y)
        if len(alphas) not in (1, targets.shape[1]):
            raise ValueError(f"alpha: expected 1 number or {targets.shape[1]}, one per target, got {len(alphas)}")
        with torch.no_grad():
            weights_given = None if weights is None else to_torch(weights, targets.dtype)
            samples = Samples.of(function, X, targets, weights_given)
            problem = Problem(samples, self.fit_intercept)
            solution = problem.solve(float(alphas[0])) if len(alphas) == 1 else per_target(problem, alphas)
        self._keep(X, y, solution, samples.is_features)
        return self

    def _keep(self, X: Any, y: np.ndarray, solution: Solution, is_features: bool) -> None:
        dual, intercept = solution.dual.numpy(), solution.intercept.numpy()
        self.dual_coef_ = dual[:, 0] if y.ndim == 1 else dual
        self.intercept_: Any = 0.0
        if self.fit_intercept:
            self.intercept_ = float(intercept[0]) if y.ndim == 1 else intercept
        self._coefficients = solution.coefficients.numpy()
        self._is_features = is_features
        self.X_fit_ = X

    def predict(self, X: Any) -> np.ndarray:
        """Predict for new samples.

        Args:
            X: samples [Q, D]. For kernel="precomputed" the rows [Q, S] of their Gram matrix with the samples of the
                fit.

        Returns:
            Predictions [Q], or [Q, C] if ``y`` of the fit had two dimensions.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=SPARSE, reset=False, dtype=FLOATS)
        X = X.astype(np.result_type(X.dtype, self._coefficients.dtype), copy=False)
        function, is_flat = self._function(), self.dual_coef_.ndim == 1
        with torch.no_grad():
            if self._is_features:
                queries = function.features(X.toarray() if scipy.sparse.issparse(X) else X)
                assert queries is not None
            else:
                queries = function.gram(X, self.X_fit_.astype(X.dtype, copy=False))
            p = (queries @ to_torch(self._coefficients, queries.dtype)).numpy()
        return (p[:, 0] if is_flat else p) + self.intercept_


def per_target(problem: Problem, alphas: np.ndarray) -> Solution:
    """Return the solution with one ridge per target, from one eigendecomposition."""
    spectrum = Spectrum(problem)
    solutions = {alpha: spectrum.solution(float(alpha)) for alpha in sorted(set(alphas))}

    def columns(name: str) -> torch.Tensor:
        return torch.stack([getattr(solutions[alpha], name)[..., i] for i, alpha in enumerate(alphas)], -1)

    return Solution(columns("dual"), columns("coefficients"), columns("intercept"))


def targets_of(X: Any, y: np.ndarray) -> torch.Tensor:
    """Return the targets [S, C] in the dtype of the samples."""
    return to_torch(y if y.ndim == 2 else y[:, None], torch.float32 if X.dtype == np.float32 else torch.float64)


def check_square(function: KernelFunction, X: Any) -> None:
    """Require a square Gram matrix if the kernel is precomputed."""
    if function.precomputed and X.shape[0] != X.shape[1]:
        raise ValueError(f"X: expected a square Gram matrix for kernel='precomputed', got shape {X.shape}")


def kernel_tags(tags: Any, kernel: Any) -> Any:
    """Return scikit-learn's tags of an estimator with this kernel."""
    tags.input_tags.sparse = not isinstance(kernel, Kernel)
    tags.input_tags.pairwise = isinstance(kernel, str) and kernel == "precomputed"
    return tags
