"""Ridge regression with weights and an intercept, reduced to a plain one, and its solutions for many ridges.

With weights w, s = sqrt(w) and W = sum(w), the problem min sum_i w_i (y_i - f(x_i) - b)^2 + alpha |f|^2 is the plain
ridge regression on features Phi = s (X - x_mean) and targets s (y - y_mean), both means weighted. Of a Gram matrix that
is M = diag(s) (I - 1 w^T / W) K (I - w 1^T / W) diag(s). Without intercept nothing is centred. If a~ solves the plain
problem, (M + alpha I) a~ = s (y - y_mean), then a = s a~ are the dual coefficients on K itself.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import api
from ..checks import FactorizationError
from ..ridge import Ridge
from .kernels import KernelFunction


@dataclass(frozen=True)
class Samples:
    """Training samples: features [S, D] of a linear kernel, or a Gram matrix [S, S]; targets [S, C]; weights [S]."""

    matrix: Tensor
    is_features: bool
    y: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, kernel: KernelFunction, x: Any, y: Tensor, weights: Tensor | None) -> Samples:
        """Compute the Gram matrix of a kernel that is not linear."""
        features = kernel.features(x)
        return cls(kernel.gram(x) if features is None else features, features is not None, y, weights)

    def take(self, rows: Tensor) -> Samples:
        """Return some of the samples."""
        matrix = self.matrix[rows] if self.is_features else self.matrix[rows][:, rows]
        return replace(
            self, matrix=matrix, y=self.y[rows], weights=None if self.weights is None else self.weights[rows]
        )

    def queries(self, rows: Tensor, train: Tensor) -> Tensor:
        """Return what :meth:`Solution.predict` of the samples ``train`` takes for the samples ``rows``."""
        return self.matrix[rows] if self.is_features else self.matrix[rows][:, train]


@dataclass(frozen=True)
class Solution:
    """Coefficients of one regression: of the features [D, C] or of a Gram matrix's columns [S, C]."""

    dual: Tensor
    coefficients: Tensor
    intercept: Tensor

    def predict(self, queries: Tensor) -> Tensor:
        """Return predictions [Q, C] for features [Q, D] or rows of a Gram matrix [Q, S]."""
        return queries @ self.coefficients + self.intercept


class Problem:
    """A plain ridge regression, equivalent to one with weights and an intercept; see the head of this file."""

    def __init__(self, samples: Samples, fit_intercept: bool) -> None:
        self.is_features, self.fit_intercept = samples.is_features, fit_intercept
        matrix, y = samples.matrix, samples.y
        self.root = None if samples.weights is None else samples.weights.sqrt().unsqueeze(1)
        self.total = float(matrix.shape[0]) if samples.weights is None else float(samples.weights.sum())
        self.y_mean, self.mean = y.new_zeros(y.shape[1]), matrix.new_zeros(1, matrix.shape[1])
        if fit_intercept:
            self.y_mean, self.mean = self._mean(y, samples.weights)[0], self._mean(matrix, samples.weights)
            y = y - self.y_mean
            # The weighted mean of the rows; for a Gram matrix also of the columns.
            matrix = matrix - self.mean
            if not self.is_features:
                matrix = matrix - self._mean(matrix.mT, samples.weights).mT
        if self.root is not None:
            matrix, y = matrix * self.root, y * self.root
            if not self.is_features:
                matrix = matrix * self.root.mT
        self.matrix, self.y = matrix, y

    def _mean(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        return rows.mean(0, keepdim=True) if weights is None else (weights / self.total)[None] @ rows

    def solution(self, scaled_dual: Tensor, coefficients: Tensor | None = None) -> Solution:
        """Return the solution of the problem with weights and intercept from the plain one's dual coefficients."""
        dual = scaled_dual if self.root is None else scaled_dual * self.root
        if coefficients is None:
            coefficients = self.matrix.mT @ scaled_dual if self.is_features else dual
        intercept = self.y_mean - (self.mean @ coefficients)[0] if self.fit_intercept else self.y_mean
        return Solution(dual, coefficients, intercept)

    def solve(self, alpha: float) -> Solution:
        """Solve for one ridge; fall back to the solution of least norm if the matrix is singular."""
        ridge = Ridge.absolute(alpha)
        try:
            if not self.is_features:
                return self.solution(api.cholesky_solve(self.matrix, self.y, ridge=ridge))
            if alpha == 0:
                return self.least_norm(0.0)
            fitted = api.fit(self.matrix, self.y, ridge=ridge)
        except FactorizationError:
            warnings.warn(
                f"the kernel matrix with alpha={alpha:g} is singular: using the solution of least norm", stacklevel=4
            )
            return self.least_norm(alpha)
        if fitted.alpha is not None:
            return self.solution(fitted.alpha)
        assert fitted.weights is not None
        return self.solution((self.y - self.matrix @ fitted.weights) / alpha, fitted.weights)

    def least_norm(self, alpha: float) -> Solution:
        """Return the least-squares solution of least norm, which exists for singular matrices too."""
        return Spectrum(self).solution(alpha)


class Spectrum:
    """An eigendecomposition of a plain problem's matrix, which gives the solutions of all ridges.

    With fewer features than samples, the eigenvectors of positive value are the left singular vectors of the features,
    and all other directions have the value 0. Otherwise they are those of the Gram matrix.
    """

    def __init__(self, problem: Problem) -> None:
        matrix = problem.matrix
        self.problem, self.y = problem, problem.y
        self.is_thin = problem.is_features and matrix.shape[0] > matrix.shape[1]
        self.border: Tensor | None = None
        if problem.fit_intercept:
            ones = matrix.new_ones(matrix.shape[0], 1) if problem.root is None else problem.root
            self.border = ones / problem.total**0.5
        if self.is_thin:
            self.vectors, self.singular, self.right = torch.linalg.svd(matrix, full_matrices=False)
            self.values, self.projected = self.singular.square(), self.vectors.mT @ self.y
            return
        k = api.gram(matrix) if problem.is_features else matrix
        if self.border is None:
            values, self.vectors = torch.linalg.eigh(k)
        else:
            # The border is an eigenvector of value 0 that the intercept takes. Shift it past all others and drop it.
            shift = max(2.0 * float(k.diagonal().sum()), 1.0)
            values, vectors = torch.linalg.eigh(k + shift * self.border @ self.border.mT)
            values, self.vectors = values[:-1], vectors[:, :-1]
        self.values, self.projected = values.clamp(min=0), self.vectors.mT @ self.y

    def scaled_dual(self, alpha: float) -> Tensor:
        """Return the plain problem's dual coefficients [S, C]; at alpha = 0 those of least norm."""
        if self.is_thin and alpha > 0:
            kept = self.values / (self.values + alpha)
            return (self.y - self.vectors @ (kept.unsqueeze(1) * self.projected)) / alpha
        return self.vectors @ (self._inverse(alpha).unsqueeze(1) * self.projected)

    def solution(self, alpha: float) -> Solution:
        """Return the solution for one ridge; at alpha = 0 that of least norm."""
        dual = self.scaled_dual(alpha)
        if not self.is_thin:
            return self.problem.solution(dual)
        # From the singular vectors, as Phi^T a~ loses digits when alpha is small.
        kept = (self.singular * self._inverse(alpha)).unsqueeze(1)
        return self.problem.solution(dual, self.right.mT @ (kept * self.projected))

    def _inverse(self, alpha: float) -> Tensor:
        """Return 1 / (value + alpha), and 0 for a sum that is 0 to rounding."""
        if not self.values.numel():
            return self.values
        shifted = self.values + alpha
        is_zero = shifted <= torch.finfo(shifted.dtype).eps * len(self.y) * self.values.max()
        return torch.where(is_zero, 0.0, 1.0 / torch.where(is_zero, 1.0, shifted))

    @cached_property
    def squares(self) -> Tensor:
        """Return the squares of the eigenvectors' entries; weighted sums of them are diagonals."""
        return self.vectors.square()

    def leave_one_out(self, alpha: float) -> Tensor:
        """Return y_i - f_i(x_i) [S, C], with f_i fitted to all samples but i; weights must be positive.

        The residual is a_i / G_ii, with G the matrix that maps the targets to the dual coefficients a.
        """
        if self.is_thin:
            diagonal = 1.0 - self.squares @ (self.values / (self.values + alpha))
            if self.border is not None:
                diagonal = diagonal - self.border[:, 0].square()
            diagonal = diagonal / alpha
        else:
            diagonal = self.squares @ (1.0 / (self.values + alpha))
        residuals = self.scaled_dual(alpha) / diagonal.unsqueeze(1)
        return residuals if self.problem.root is None else residuals / self.problem.root
