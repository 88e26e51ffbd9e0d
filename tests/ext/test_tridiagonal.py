"""The tridiagonal form of the core: A = Q T Q^T, its extreme eigenvalues, and solves for many shifts."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Ridge, reference
from ssdd_ext.ops import native, spectrum
from ssdd_ext.ops.tridiagonal import Tridiagonal, tridiagonal
from ssdd_ext.testing import relative_error


def draw(n, batch=(), dtype=torch.float64):
    x = torch.randn(*batch, n, n + 3, dtype=dtype)
    return x @ x.mT


def poison():
    for work in native._spare:
        work.fill_(float("nan"))


def matrix(form):
    beside = form.beside[..., :-1]
    return torch.diag_embed(form.diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("n, batch", [(1, ()), (2, ()), (7, (3,)), (40, (2, 2)), (150, ())], ids=str)
def test_the_form_is_that_of_the_matrix(n, batch, dtype):
    a, bound = draw(n, batch, dtype), 2e-5 if dtype == torch.float32 else 1e-12
    poison()
    lower = a.tril() + torch.full_like(a, float("nan")).triu(1)  # of the upper triangle nothing is read
    form = tridiagonal(lower.mT.contiguous().mT)
    q_t = form.rotate(torch.eye(n, dtype=dtype).expand(a.shape))
    assert relative_error(q_t.mT @ q_t, torch.eye(n, dtype=dtype).expand(a.shape)) < bound
    assert relative_error(q_t.mT @ matrix(form) @ q_t, a) < bound
    w = torch.linalg.eigvalsh(a.double())
    assert relative_error(form.bounds[..., 1], w[..., -1]) < bound
    assert ((form.bounds[..., 0] - w[..., 0]).abs() <= bound * w[..., -1]).all()
    if not batch and n < 100:
        t, q = reference.tridiagonal(a)
        assert relative_error(q @ t @ q.mT, a) < bound and relative_error(t, t.tril(1).triu(-1)) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize("own_y", [False, True])
def test_solves_for_many_shifts(own_y, per_target, dtype):
    n, r, c = 30, 5, 70
    a, y = draw(n, (2,), dtype), torch.randn(2, r if own_y else 1, n, c, dtype=dtype)
    shifts = torch.rand(2, r, c if per_target else 1, dtype=dtype) * 20 + 5
    found, status, _ = spectrum.decompose(a, shifts, "raise")
    assert isinstance(found.form, Tridiagonal) and not status.any()
    poison()
    x = spectrum.solve_many(a, y, shifts, found)
    wide, each = a.double()[:, None, None], shifts.double().expand(2, r, c)[..., None, None]
    right = y.double().expand(2, r, n, c).mT.unsqueeze(-1)
    expected = torch.linalg.solve(wide + each * torch.eye(n, dtype=torch.float64), right).squeeze(-1).mT
    assert x.dtype == dtype and relative_error(x, expected) < (2e-5 if dtype == torch.float32 else 1e-11)


def test_the_same_bits_for_the_same_threads_and_every_use_of_the_ridges():
    x, y, q = (torch.randn(*shape, dtype=torch.float64) for shape in ((60, 20), (60, 40), (33, 20)))
    values, each = torch.logspace(-2, 2, 9).double(), torch.logspace(-2, 2, 40).double()
    for ridges in (Ridge.absolute(values), Ridge.per_target(each.expand(2, 40))):
        for queries in (q, torch.randn(90, 20, dtype=torch.float64)):
            path = ssdd_ext.krr_path(x, y, ridges=ridges, kernel=RBF(3.0))
            poison()
            p = path.predict(queries)
            again = ssdd_ext.krr_path(x, y, ridges=ridges, kernel=RBF(3.0)).predict(queries)
            assert torch.equal(p, again)
            expected = ssdd_ext.krr_path(x, y, ridges=ridges, kernel=RBF(3.0), backend="torch").predict(queries)
            assert relative_error(p, expected) < 1e-10
            assert relative_error(ssdd_ext.gram(queries, x, kernel=RBF(3.0)) @ path.alpha, expected) < 1e-10


def test_a_matrix_that_is_not_finite_fails_alone():
    a = draw(6, (3,))
    a[1, 2, 2] = float("inf")
    y, ridge = torch.randn(3, 6, 2, dtype=torch.float64), Ridge.per_target(torch.ones(2, dtype=torch.float64))
    x, info = ssdd_ext.cholesky_solve(a, y, ridge=ridge, on_failure="nan", return_info=True)
    assert info.status.bool().tolist() == [False, True, False]
    assert x[1].isnan().all() and x[[0, 2]].isfinite().all()
