"""Kernel ridge regression and ridge regression that choose their own ridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import ParameterGrid, check_cv
from sklearn.utils.validation import check_is_fitted, validate_data

from ..kernels import Kernel
from .arrays import FLOATS, check_alpha, check_weights, to_torch
from .choice import Rule, choose
from .kernel_ridge import SPARSE, KernelRidge, check_square, kernel_tags, per_target, targets_of
from .kernels import KernelFunction
from .problem import Problem, Samples, Solution

SEARCHED = ("kernel", "gamma", "degree", "coef0", "kernel_params")


class KernelRidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Kernel ridge regression that chooses its ridge, and its kernel's parameters, by cross-validation.

    Leave-one-out is exact and in closed form: one eigendecomposition per candidate of ``param_grid`` serves all ridges.
    So is k-fold, with one per fold. Equivalent to ``GridSearchCV(KernelRidge(), {"alpha": alphas, **param_grid})``.

    Args:
        alphas: ridges > 0 to choose from, as ``alpha`` of :class:`KernelRidge`. Default (0.1, 1, 10).
        kernel: as in :class:`KernelRidge`. Default "linear".
        gamma: as in :class:`KernelRidge`. Default None.
        degree: as in :class:`KernelRidge`. Default 3.
        coef0: as in :class:`KernelRidge`. Default 1.
        kernel_params: as in :class:`KernelRidge`. Default None.
        fit_intercept: as in :class:`KernelRidge`. Default False.
        param_grid: values to try of kernel, gamma, degree, coef0 and kernel_params, as in scikit-learn's
            ``ParameterGrid``: ``{"gamma": [0.1, 1.0]}`` or a list of such. Default None: the arguments above only.
        cv: None for leave-one-out (default), a number of folds, a splitter, or a list of (train, test) indices. Scores
            are averages over the folds. With weights, leave-one-out leaves out a sample with its whole weight.
        scoring: a scikit-learn scorer or its name. Default None: the negative mean squared error.
        alpha_per_target: choose one ridge per target. Default False.

    After ``fit`` it has ``alpha_`` (a number, or [C] with ``alpha_per_target``), ``best_params_``, ``best_score_``,
    ``cv_results_`` (``params`` and ``mean_test_score`` of each candidate), ``best_estimator_`` (a
    :class:`KernelRidge`), its ``dual_coef_``, ``X_fit_`` and ``intercept_``, and ``n_features_in_``.

    Raises:
        TypeError, ValueError: in ``fit``, naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        kernel: str | Kernel | Callable[..., float] = "linear",
        gamma: float | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: dict[str, Any] | None = None,
        fit_intercept: bool = False,
        param_grid: Any = None,
        cv: Any = None,
        scoring: Any = None,
        alpha_per_target: bool = False,
    ) -> None:
        self.alphas = alphas
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params
        self.fit_intercept = fit_intercept
        self.param_grid = param_grid
        self.cv = cv
        self.scoring = scoring
        self.alpha_per_target = alpha_per_target

    def __sklearn_tags__(self) -> Any:
        return kernel_tags(super().__sklearn_tags__(), self.kernel)

    def _candidates(self) -> list[dict[str, Any]]:
        own = {name: getattr(self, name) for name in SEARCHED}
        grid = list(ParameterGrid({} if self.param_grid is None else self.param_grid))
        unknown = {name for point in grid for name in point} - set(SEARCHED)
        if unknown or not grid:
            got = sorted(unknown) or "no candidate"
            raise ValueError(f"param_grid: expected lists of values of {', '.join(SEARCHED)}, got {got}")
        return [{**own, **point} for point in grid]

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KernelRidgeCV:
        """Choose the ridge and the kernel's parameters, and fit to all samples.

        Args:
            X: samples [S, D], dense or sparse. For kernel="precomputed" the Gram matrix [S, S].
            y: targets [S] or [S, C].
            sample_weight: weights >= 0 of the squared errors, in the fits and in the scores; a number or [S]. Default
                None: 1 for each.

        Returns:
            This estimator.
        """
        candidates = self._candidates()
        functions = [KernelFunction(*(point[name] for name in SEARCHED)) for point in candidates]
        X, y = validate_data(self, X, y, accept_sparse=SPARSE, multi_output=True, y_numeric=True, dtype=FLOATS)
        for function in functions:
            check_square(function, X)
        targets, weights = targets_of(X, y), check_weights(sample_weight, X)
        given = None if weights is None else to_torch(weights, targets.dtype)
        rule = make_rule(self, X, y)
        choice = choose((Samples.of(f, X, targets, given) for f in functions), rule)
        self.best_params_ = candidates[choice.index]
        self.alpha_ = choice.alphas if self.alpha_per_target and y.ndim == 2 else float(choice.alphas[0])
        self.best_score_ = choice.score if self.alpha_per_target and y.ndim == 2 else float(choice.score[0])
        self.cv_results_ = {
            "params": [{"alpha": float(alpha), **point} for point in candidates for alpha in rule.alphas],
            "mean_test_score": choice.table.reshape(-1),
        }
        best = KernelRidge(self.alpha_, fit_intercept=self.fit_intercept, **self.best_params_)
        self.best_estimator_ = best.fit(X, y, sample_weight)
        self.dual_coef_, self.X_fit_, self.intercept_ = best.dual_coef_, best.X_fit_, best.intercept_
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict for new samples.

        Args:
            X: as in :meth:`KernelRidge.predict`.

        Returns:
            Predictions [Q], or [Q, C] if ``y`` of the fit had two dimensions.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=SPARSE, reset=False, dtype=FLOATS)
        return self.best_estimator_.predict(X)


class RidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear ridge regression that chooses its ridge: a replacement for ``sklearn.linear_model.RidgeCV``.

    Equivalent to that class for dense samples and the arguments that both have, except that targets [S, 1] give
    predictions [Q, 1] here and [Q] there. Leave-one-out is exact, from one
    decomposition of the features or of the Gram matrix, whichever is smaller.

    Args:
        alphas: ridges > 0 to choose from. Default (0.1, 1, 10).
        fit_intercept: fit an intercept, which the ridge does not shrink. Default True.
        scoring: a scikit-learn scorer or its name. Default None: the negative mean squared error, also with ``cv``,
            for which scikit-learn's default is R^2.
        cv: None for leave-one-out (default), a number of folds, a splitter, or a list of (train, test) indices.
        alpha_per_target: choose one ridge per target. Default False.

    After ``fit`` it has ``coef_`` [D] or [C, D], ``intercept_``, ``alpha_``, ``best_score_`` and ``n_features_in_``.
    With ``sample_weight``, the ``best_score_`` of leave-one-out is that of scikit-learn: the weighted squared errors
    are divided by the number of samples. :class:`KernelRidgeCV` divides them by the sum of the weights.

    Raises:
        TypeError, ValueError: in ``fit``, naming the argument, what was expected and what came.
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: Any = None,
        cv: Any = None,
        alpha_per_target: bool = False,
    ) -> None:
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.alpha_per_target = alpha_per_target

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeCV:
        """Choose the ridge, and fit to all samples.

        Args:
            X: dense samples [S, D].
            y: targets [S] or [S, C].
            sample_weight: weights >= 0 of the squared errors, in the fits and in the scores; a number or [S]. Default
                None: 1 for each.

        Returns:
            This estimator.
        """
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=FLOATS)
        targets, weights = targets_of(X, y), check_weights(sample_weight, X)
        given = None if weights is None else to_torch(weights, targets.dtype)
        samples = Samples.of(KernelFunction("linear"), X, targets, given)
        choice = choose([samples], make_rule(self, X, y))
        with torch.no_grad():
            problem = Problem(samples, self.fit_intercept)
            several = len(choice.alphas) > 1
            solution = per_target(problem, choice.alphas) if several else problem.solve(float(choice.alphas[0]))
        self._keep(solution, y.ndim == 1)
        self.alpha_ = choice.alphas if self.alpha_per_target and y.ndim == 2 else float(choice.alphas[0])
        score = choice.score
        if weights is not None and self.cv is None and self.scoring is None:
            score = score * weights.mean()  # scikit-learn divides by the number of samples
        self.best_score_ = score if self.alpha_per_target and y.ndim == 2 else float(score[0])
        return self

    def _keep(self, solution: Solution, is_flat: bool) -> None:
        coefficients, intercept = solution.coefficients.numpy(), solution.intercept.numpy()
        self.coef_ = coefficients[:, 0] if is_flat else np.ascontiguousarray(coefficients.T)
        self.intercept_: Any = 0.0
        if self.fit_intercept:
            self.intercept_ = float(intercept[0]) if is_flat else intercept

    def predict(self, X: Any) -> np.ndarray:
        """Predict for new samples.

        Args:
            X: dense samples [Q, D].

        Returns:
            Predictions [Q], or [Q, C] if ``y`` of the fit had two dimensions.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=FLOATS)
        return X @ self.coef_.T + self.intercept_


def make_rule(estimator: Any, X: Any, y: np.ndarray) -> Rule:
    """Return the rule of comparison that an estimator's arguments describe."""
    splits = None if estimator.cv is None else list(check_cv(estimator.cv).split(X, y))
    alphas = check_alpha("alphas", estimator.alphas, positive=True)
    several = estimator.alpha_per_target and y.ndim == 2
    return Rule(alphas, splits, estimator.scoring, several, estimator.fit_intercept, y.ndim == 1)
