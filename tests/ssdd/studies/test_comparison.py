"""The statistics of a comparison, in cases with known answers."""

import math

import pytest

from ssdd.config import InputError
from ssdd.studies import compare, mean_and_error


def test_mean_and_its_standard_error():
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and error == pytest.approx(math.sqrt(5 / 3 / 4))
    assert math.isnan(mean_and_error([1.0])[1])


def test_comparison_is_paired():
    # Seeds differ far more than methods do, but the paired difference is exact.
    theirs = [0.1, 0.5, 0.9]
    c = compare([t - 0.02 for t in theirs], theirs)
    assert c.difference == pytest.approx(0.02) and c.standard_error < 1e-9 and c.significant
    assert c.reduction == pytest.approx(0.02 / 0.5)


def test_two_standard_errors_decide():
    # Differences 0, 1, 2: mean 1, standard error 1/sqrt(3): 1 < 2/sqrt(3).
    assert not compare([0.0, 0.0, 0.0], [0.0, 1.0, 2.0]).significant
    assert compare([0.0, 0.0, 0.0], [1.0, 1.5, 2.0]).significant
    assert not compare([1.0, 1.5, 2.0], [0.0, 0.0, 0.0001]).significant
    assert not compare([0.0], [1.0]).significant  # one seed proves nothing
    with pytest.raises(InputError, match="one per seed"):
        compare([1.0], [1.0, 2.0])


def test_a_baseline_without_error_has_no_reduction():
    c = compare([1.0, 2.0], [0.0, 0.0])
    assert c.difference == -1.5 and math.isnan(c.reduction) and not c.significant
