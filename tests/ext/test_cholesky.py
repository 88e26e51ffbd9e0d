"""cholesky and cholesky_solve: the factor, its gradient, and failures."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import FactorizationError, Linear, Ridge
from ssdd_ext.testing import relative_error

ORDERS = [1, 2, 3, 7, 8, 16, 31, 33, 64, 65, 130, 257]


def spd(random, *shape, grad=False):
    x = random(*shape, shape[-1])
    eye = torch.eye(shape[-1], dtype=torch.float64)
    return (x @ x.mT / shape[-1] + 0.5 * eye).requires_grad_(grad)


@pytest.mark.parametrize("order", ORDERS)
def test_factor_and_gradient(order, backend, random):
    a, weight = spd(random, order, grad=True), random(order, order)
    factor = ssdd_ext.cholesky(a, backend=backend)
    assert torch.equal(factor, factor.tril())
    assert relative_error(factor, torch.linalg.cholesky(a)) < 1e-12
    (got,) = torch.autograd.grad((factor * weight).sum(), a)
    symmetric = a.detach().requires_grad_()
    (reference,) = torch.autograd.grad((torch.linalg.cholesky(symmetric) * weight).sum(), symmetric)
    # Only the lower triangle is read, so gradients compare as gradients with respect to that triangle.
    assert relative_error(lower(got), lower(reference)) < 1e-10


def lower(gradient):
    """Return the gradient with respect to the lower triangle of a symmetric matrix."""
    return gradient.tril() + gradient.triu(1).mT


def test_only_the_lower_triangle_is_read(backend, random):
    a, y = spd(random, 2, 9), random(2, 9, 3)
    garbage = a.tril() + torch.full_like(a, float("nan")).triu(1)
    assert torch.equal(ssdd_ext.cholesky(garbage, backend=backend), ssdd_ext.cholesky(a, backend=backend))
    solved = ssdd_ext.cholesky_solve(garbage, y, ridge=Ridge.trace(0.1), backend=backend)
    assert torch.equal(solved, ssdd_ext.cholesky_solve(a, y, ridge=Ridge.trace(0.1), backend=backend))


@pytest.mark.parametrize("batch", [(0,), (1,), (4,), (2, 3), (2, 0)], ids=str)
def test_batches(batch, backend, random):
    a, y = spd(random, *batch, 6), random(*batch, 6, 2)
    assert relative_error(ssdd_ext.cholesky(a, backend=backend), torch.linalg.cholesky(a)) < 1e-13
    assert relative_error(ssdd_ext.cholesky_solve(a, y, backend=backend), torch.linalg.solve(a, y)) < 1e-13


def test_one_matrix_for_many_targets_and_the_reverse(backend, random):
    a, many = spd(random, 6), random(4, 6, 2)
    assert relative_error(ssdd_ext.cholesky_solve(a, many, backend=backend), torch.linalg.solve(a, many)) < 1e-13
    matrices, y = spd(random, 4, 6), random(6, 2)
    got = ssdd_ext.cholesky_solve(matrices, y, backend=backend)
    assert relative_error(got, torch.linalg.solve(matrices, y)) < 1e-13


def test_transposed_and_strided_matrices(backend, random):
    a = spd(random, 3, 10)
    large = torch.full((3, 21, 32), float("nan"), dtype=torch.float64)
    view = large[:, 1::2, 2::3]
    view.copy_(a)
    for other in (a.mT, view, a[0].expand(3, 10, 10)):
        assert relative_error(ssdd_ext.cholesky(other, backend=backend), torch.linalg.cholesky(other)) < 1e-13
        y = random(3, 2, 10).mT
        assert relative_error(ssdd_ext.cholesky_solve(other, y, backend=backend), torch.linalg.solve(other, y)) < 1e-12


def test_no_targets(backend, random):
    assert ssdd_ext.cholesky_solve(spd(random, 5), random(5, 0), backend=backend).shape == (5, 0)


# --- failures -------------------------------------------------------------------------------------------


def one_bad_of_three(random, order=8, pivot=5, requires_grad=False):
    """Return three problems, of which problem 1 breaks down at `pivot` (1-based)."""
    a = spd(random, 3, order)
    a[1, pivot - 1, pivot - 1] = -2.0
    return a.requires_grad_(requires_grad)


@pytest.mark.parametrize("order, pivot", [(1, 1), (8, 1), (8, 5), (8, 8), (70, 66), (200, 150)])
def test_raise_names_problem_and_pivot(order, pivot, backend, random):
    a = one_bad_of_three(random, order, pivot)
    with pytest.raises(FactorizationError, match=rf"cholesky: .*problem 1 of 3.*pivot {pivot} of {order}"):
        ssdd_ext.cholesky(a, backend=backend)


def test_raise_names_the_ridge_and_what_to_try(backend, random):
    a, y = one_bad_of_three(random), random(3, 8, 2)
    with pytest.raises(FactorizationError) as caught:
        ssdd_ext.cholesky_solve(a, y, ridge=Ridge.absolute(0.125), backend=backend)
    text = str(caught.value)
    assert "problem 1 of 3" in text and "pivot 5 of 8" in text and "0.125" in text
    assert "jitter" in text and "ridge" in text and "solve_dtype" in text
    assert isinstance(caught.value, torch.linalg.LinAlgError)


def test_raise_counts_the_problems_that_failed(backend, random):
    a = one_bad_of_three(random)
    a[2, 0, 0] = float("nan")
    with pytest.raises(FactorizationError, match="problem 1 of 3.*2 problems failed"):
        ssdd_ext.cholesky(a, backend=backend)


def test_nan_fills_only_the_problem_that_failed(backend, random):
    a, y = one_bad_of_three(random, requires_grad=True), random(3, 8, 2, grad=True)
    solved, info = ssdd_ext.cholesky_solve(a, y, on_failure="nan", return_info=True, backend=backend)
    assert info.status.tolist() == [0, 5, 0] and info.status.dtype == torch.int32
    assert info.jitter.tolist() == [0, 0, 0]
    assert solved[1].isnan().all()
    good = [0, 2]
    assert relative_error(solved[good], torch.linalg.solve(a[good], y[good])) < 1e-13
    factor, info = ssdd_ext.cholesky(a, on_failure="nan", return_info=True, backend=backend)
    assert info.status.tolist() == [0, 5, 0]
    assert factor[1].tril().isnan().sum() == 36
    assert relative_error(factor[good], torch.linalg.cholesky(a[good])) < 1e-13
    da, dy = torch.autograd.grad(solved[good].sum(), (a, y))
    assert da[good].isfinite().all() and dy[good].isfinite().all(), "a failure leaks into its neighbours' gradients"


def nearly_singular(random, order=12):
    """Return a matrix of rank 4 of 12 with an eigenvalue just below zero: only jitter makes it positive definite."""
    x = random(order, 4)
    low_rank = x @ x.mT
    return low_rank - 1e-9 * torch.eye(order, dtype=torch.float64)


def test_jitter_recovers_and_says_where(backend, random):
    bad = nearly_singular(random)
    a = torch.stack([spd(random, 12), bad, spd(random, 12)])
    factor, info = ssdd_ext.cholesky(a, on_failure="jitter", return_info=True, backend=backend)
    assert info.status.tolist() == [0, 0, 0]
    jitter = info.jitter.tolist()
    assert jitter[0] == 0 and jitter[2] == 0 and 0 < jitter[1] < 1e-3 * float(bad.diagonal().mean())
    shifted = a + info.jitter[:, None, None] * torch.eye(12, dtype=torch.float64)
    assert relative_error(factor @ factor.mT, shifted) < 1e-13


def test_jitter_is_a_constant_for_the_gradient(backend, random):
    bad = nearly_singular(random).requires_grad_()
    y, weight = random(12, 2, grad=True), random(12, 2)
    got, info = ssdd_ext.cholesky_solve(bad, y, on_failure="jitter", return_info=True, backend=backend)
    assert float(info.jitter) > 0
    shifted = bad + info.jitter.detach() * torch.eye(12, dtype=torch.float64)
    reference = torch.linalg.solve(shifted, y)
    kappa = float(torch.linalg.cond(shifted.detach()))
    assert relative_error(got, reference) < 1e-14 * kappa
    found = torch.autograd.grad((got * weight).sum(), (bad, y))
    expected = torch.autograd.grad((reference * weight).sum(), (bad, y))
    # The matrix is symmetric and one triangle is read: compare in symmetric directions.
    assert relative_error(lower(found[0]), lower(expected[0])) < 1e-13 * kappa
    assert relative_error(found[1], expected[1]) < 1e-14 * kappa


def test_jitter_gives_up_on_what_is_not_nearly_positive(backend, random):
    a = one_bad_of_three(random)
    factor, info = ssdd_ext.cholesky(a, on_failure="jitter", return_info=True, backend=backend)
    assert info.status[1] > 0 and factor[1].isnan().any()
    assert info.status[0] == 0 and info.status[2] == 0


@pytest.mark.parametrize("place", ["diagonal", "below"])
def test_nan_in_the_matrix_is_a_failure(place, backend, random):
    a = spd(random, 2, 6)
    a[0, 3, 3 if place == "diagonal" else 1] = float("nan")
    factor, info = ssdd_ext.cholesky(a, on_failure="nan", return_info=True, backend=backend)
    assert info.status.tolist() == [4, 0]
    assert factor[0].tril().isnan().sum() == 21 and factor[1].isfinite().all()


def test_an_infinite_pivot_is_a_failure(backend):
    a = torch.eye(3, dtype=torch.float64)
    a[1, 1] = float("inf")
    _, info = ssdd_ext.cholesky(a, on_failure="nan", return_info=True, backend=backend)
    assert info.status.item() == 2


def test_krr_with_a_point_at_the_origin_and_no_ridge(backend, random):
    """K has a row of zeros, and there are more features than points, so no plan avoids it. The error names the call."""
    x, y = random(8, 10), random(8, 1)
    x[5] = 0
    with pytest.raises(FactorizationError, match=r"krr: .*pivot 6 of 8.*ridge .*absolute.*0"):
        ssdd_ext.krr(x, y, x, kernel=Linear(), ridge=Ridge.absolute(0.0), backend=backend)
    options = {"ridge": Ridge.absolute(0.0), "on_failure": "jitter", "return_info": True, "backend": backend}
    p, info = ssdd_ext.krr(x, y, x, **options)
    assert p.isfinite().all() and float(info.jitter) > 0 and int(info.status) == 0
    _, info = ssdd_ext.krr(x, y, x, **options | {"on_failure": "nan"})
    assert int(info.status) == 6


@pytest.mark.parametrize("batch", [(), (16,)], ids=["one", "lanes"])
def test_equal_points_are_a_failure_and_not_nan(batch, backend, random):
    """Pivots that rounding made positive are a failure in float32, whose factor is computed in double on the CPU."""
    for s in (5, 16, 37):
        x, y, z = (random(*batch, *shape).float() for shape in ((1, 32), (s, 3), (4, 32)))
        x = x.expand(*batch, s, 32)
        options = {"ridge": Ridge.absolute(0.0), "return_info": True, "backend": backend}
        p, info = ssdd_ext.krr(x, y, z, on_failure="nan", **options)
        assert torch.equal(p.isfinite().all(-1).all(-1), info.status == 0)
        p, info = ssdd_ext.krr(x, y, z, on_failure="jitter", **options)
        assert p.isfinite().all() and (info.status == 0).all()
