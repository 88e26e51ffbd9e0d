"""The choice of a ridge, and of a kernel's parameters, by leave-one-out or k-fold cross-validation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import check_scoring
from torch import Tensor

from .arrays import to_torch
from .problem import Problem, Samples, Spectrum

Splits = list[tuple[np.ndarray, np.ndarray]]


class _Predicted(RegressorMixin, BaseEstimator):
    """An estimator whose samples are its predictions, for scikit-learn's scorers."""

    def fit(self, X: Any, y: Any) -> _Predicted:
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X


@dataclass(frozen=True)
class Rule:
    """How candidates are compared: ``splits`` None is leave-one-out, ``scoring`` None the negative mean squared error.

    ``is_flat``: the targets had one dimension. ``per_target``: scores [C] instead of [1].
    """

    alphas: np.ndarray
    splits: Splits | None
    scoring: Any
    per_target: bool
    fit_intercept: bool
    is_flat: bool

    def scores(self, samples: Samples) -> np.ndarray:
        """Return the score of each ridge, [A, C] or [A, 1]."""
        if self.splits is None:
            return self._leave_one_out(samples)
        totals, count = np.zeros((len(self.alphas), samples.y.shape[1] if self.per_target else 1)), 0
        for train, test in self.splits:
            rows, others = to_torch(np.asarray(train)).long(), to_torch(np.asarray(test)).long()
            held_out = samples.take(others) if samples.is_features else None
            y, weights = samples.y[others], None if samples.weights is None else samples.weights[others]
            if weights is not None and not bool((weights > 0).any()):
                continue
            spectrum = Spectrum(Problem(samples.take(rows), self.fit_intercept))
            queries = samples.queries(rows=others, train=rows) if held_out is None else held_out.matrix
            found = [spectrum.solution(float(alpha)).predict(queries) for alpha in self.alphas]
            totals += np.stack([self._score(p, y, weights) for p in found])
            count += 1
        return totals / max(count, 1)

    def _leave_one_out(self, samples: Samples) -> np.ndarray:
        if samples.weights is not None and not bool((samples.weights > 0).all()):
            samples = samples.take(samples.weights.nonzero()[:, 0])
        if len(samples.y) < 2:
            raise ValueError("X: leave-one-out needs at least 2 samples of positive weight, got n_samples=1")
        spectrum = Spectrum(Problem(samples, self.fit_intercept))
        found = []
        for alpha in map(float, self.alphas):
            residuals = spectrum.leave_one_out(alpha)
            found.append(self._score(samples.y - residuals, samples.y, samples.weights))
        return np.stack(found)

    def _score(self, p: Tensor, y: Tensor, weights: Tensor | None) -> np.ndarray:
        """Score predictions [Q, C]: [C], or [1] for all targets together."""
        if self.scoring is None:
            errors = (p - y).square()
            mean = errors.mean(0) if weights is None else (weights @ errors) / weights.sum()
            return -(mean if self.per_target else mean.mean(0, keepdim=True)).double().numpy()
        scorer = check_scoring(_Predicted(), scoring=self.scoring)
        keywords = {} if weights is None else {"sample_weight": weights.numpy()}

        def score(columns: Any) -> float:
            return float(scorer(_Predicted(), p[:, columns].numpy(), y[:, columns].numpy(), **keywords))

        if self.per_target:
            return np.array([score(i) for i in range(y.shape[1])])
        return np.array([score(0 if self.is_flat else slice(None))])


@dataclass(frozen=True)
class Choice:
    """The best candidate: its index in the grid, its ridges [C] or [1], its score, and the scores [G, A] of all."""

    index: int
    alphas: np.ndarray
    score: np.ndarray
    samples: Samples
    table: np.ndarray


def choose(candidates: Iterable[Samples], rule: Rule) -> Choice:
    """Return the best of the candidates, each with its best ridge. Of equal ones the first is taken."""
    best: tuple[int, np.ndarray, np.ndarray, Samples] | None = None
    tables = []
    with torch.no_grad():
        for index, samples in enumerate(candidates):
            table = rule.scores(samples)
            tables.append(table.mean(1))
            picked = np.argmax(np.where(np.isnan(table), -np.inf, table), axis=0)
            score = np.take_along_axis(table, picked[None], 0)[0]
            if best is None or score.mean() > best[2].mean():
                best = (index, rule.alphas[picked], score, samples)
    assert best is not None
    return Choice(*best, np.stack(tables))
