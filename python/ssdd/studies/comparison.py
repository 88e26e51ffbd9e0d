"""Whether one method beats another: the paired difference over the seeds against its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import InputError


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, s/√n with s from n-1 degrees of freedom (nan for a single value)."""
    n = len(values)
    if not n:
        raise InputError("values: expected at least one")
    mean = sum(values) / n
    if n == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


@dataclass(frozen=True)
class Comparison:
    """``ours`` against ``theirs``, both errors (smaller is better), paired by seed."""

    difference: float
    """Mean of theirs - ours: positive where ours is better."""
    standard_error: float
    """Of that mean, over the seeds."""
    reduction: float
    """1 - mean(ours) / mean(theirs)."""

    @property
    def significant(self) -> bool:
        """Whether ours is better by more than two standard errors."""
        return self.difference > 2 * self.standard_error


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare two lists of errors, one entry a seed, in the same order of seeds."""
    if len(ours) != len(theirs):
        raise InputError(f"theirs: expected {len(ours)} values, one a seed, got {len(theirs)}")
    difference, error = mean_and_error([t - o for o, t in zip(ours, theirs, strict=True)])
    return Comparison(difference, error, 1 - mean_and_error(ours)[0] / mean_and_error(theirs)[0])
