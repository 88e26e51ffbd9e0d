"""Comparison of two methods: the mean paired difference over the seeds, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import InputError


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, s/√n with s from n-1 degrees of freedom (nan for a single value)."""
    n = len(values)
    if not n:
        raise InputError("values: expected at least one")
    mean = sum(values) / n
    if n == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


@dataclass(frozen=True)
class Comparison:
    """``ours`` compared with ``theirs``, both errors (smaller is better), paired by seed."""

    difference: float
    """Mean of theirs - ours: positive if ours is better."""
    standard_error: float
    """Standard error of that mean over the seeds."""
    reduction: float
    """1 - mean(ours) / mean(theirs); NaN if the mean of theirs is 0."""

    @property
    def significant(self) -> bool:
        """True if ours is better by more than two standard errors."""
        return self.difference > 2 * self.standard_error


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare two lists of errors, paired by seed.

    Args:
        ours: one error per seed.
        theirs: one error per seed, in the same order of seeds.
    """
    if len(ours) != len(theirs):
        raise InputError(f"theirs: expected {len(ours)} values, one per seed, got {len(theirs)}")
    difference, error = mean_and_error([t - o for o, t in zip(ours, theirs, strict=True)])
    baseline = mean_and_error(theirs)[0]
    return Comparison(difference, error, 1 - mean_and_error(ours)[0] / baseline if baseline else math.nan)
