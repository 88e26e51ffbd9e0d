"""The estimate of the condition number, and the one warning about float32 results without digits."""

import threading
import warnings

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge
from ssdd_ext.api import precision

F64 = torch.float64


@pytest.fixture(autouse=True)
def fresh():
    precision.reset()
    yield
    precision.reset()


def problem(s=40, d=60, dtype=F64):
    torch.manual_seed(0)
    x = torch.randn(s, d, dtype=dtype)
    return x, torch.randn(s, 3, dtype=dtype), torch.randn(20, d, dtype=dtype)


@pytest.mark.parametrize("n", (1, 2, 30))
@pytest.mark.parametrize("expected", (1.0, 1e3, 1e9))
def test_estimate_is_a_lower_bound_and_close(n, expected):
    torch.manual_seed(n)
    q = torch.linalg.qr(torch.randn(5, n, n, dtype=F64)).Q
    w = torch.logspace(0, torch.tensor(expected).log10().item(), n, dtype=F64)
    a = q @ torch.diag_embed(w.expand(5, n)) @ q.mT
    _, info = ssdd_ext.cholesky(a, return_info=True)
    right = w[-1] / w[0]
    assert info.condition.shape == (5,)
    assert (info.condition <= right * (1 + 1e-6)).all() and (info.condition >= 0.4 * right).all()


@pytest.mark.parametrize("backend", ("native", "planned", "torch"))
@pytest.mark.parametrize(
    "kernel, s, d", ((Linear(bias=1.0), 40, 60), (Linear(), 60, 9), (RBF(4.0), 40, 60), (RBF(1.0), 130, 3))
)
def test_every_call_returns_it(backend, kernel, s, d):
    x, y, q = problem(s, d)
    options = {"kernel": kernel, "ridge": Ridge.absolute(1e-2), "backend": backend, "return_info": True}
    k = ssdd_ext.gram(x, kernel=kernel)
    # The primal matrix of a linear kernel has the same nonzero spectrum: that of K_ss without its zeros.
    w = torch.linalg.eigvalsh(k)
    primal = kernel == Linear() and d < s
    by_order = {order: (w[-1] + 1e-2) / (w[-order] + 1e-2) for order in (d, s) if order <= s}
    right, of_fit = by_order[d if primal and backend != "torch" else s], by_order[d if primal else s]
    got = [
        ssdd_ext.krr(x, y, q, **options)[1],
        ssdd_ext.krr(x.clone().requires_grad_(), y, q, **options)[1],
        ssdd_ext.krr_mse(x, y, q, q[:, :3], **options)[1],
        ssdd_ext.krr_cross_entropy(x, y, q, torch.zeros(20, dtype=torch.int64), **options)[1],
    ]
    fitted = ssdd_ext.fit(x, y, kernel=kernel, ridge=Ridge.absolute(1e-2), backend=backend).info
    assert 0.4 * of_fit <= fitted.condition <= of_fit * 1.0001
    for info in got:
        assert 0.4 * right <= info.condition <= right * 1.0001 and not info.condition.requires_grad
    dual = {key: value for key, value in options.items() if key != "kernel"}
    for info in (
        ssdd_ext.cholesky_solve(k, y, **dual)[1],
        ssdd_ext.krr_from_gram(k, y, k, **dual)[1],
        ssdd_ext.log_marginal_likelihood(x, y, **options)[1],
    ):
        assert 0.4 * (w[-1] + 1e-2) / (w[0] + 1e-2) <= info.condition


def test_batch_of_lanes_without_gradients_and_a_failed_problem():
    torch.manual_seed(0)
    x, y, q = torch.randn(50, 8, 20), torch.randn(50, 8, 2), torch.randn(50, 5, 20)
    x[3] = 0
    ridge = Ridge.absolute(0.0)
    _, info = ssdd_ext.krr(x, y, q, ridge=ridge, on_failure="nan", return_info=True)
    right = torch.linalg.cond(x.double() @ x.double().mT)
    good = torch.arange(50) != 3
    assert info.condition[3].isnan() and info.status[3] != 0
    assert (info.condition[good] <= right[good] * 1.01).all() and (info.condition[good] > 0.3 * right[good]).all()


def test_path_gives_the_worst_ridge():
    x, y, _ = problem()
    path = ssdd_ext.krr_path(x, y, kernel=RBF(4.0), ridges=Ridge.absolute(torch.tensor([1e-3, 1.0], dtype=F64)))
    w = torch.linalg.eigvalsh(ssdd_ext.gram(x, kernel=RBF(4.0)))
    torch.testing.assert_close(path.info.condition, (w[-1] + 1e-3) / (w[0] + 1e-3))


def ill_conditioned():
    x = torch.linspace(0, 1, 100)[:, None]
    return x, torch.sin(6 * x), torch.rand(7, 1), RBF(0.5), Ridge.absolute(1e-5)


CALLS = {
    "krr": lambda x, y, q, kernel, ridge: ssdd_ext.krr(x, y, q, kernel=kernel, ridge=ridge),
    "krr_mse": lambda x, y, q, kernel, ridge: ssdd_ext.krr_mse(x, y.requires_grad_(), q, q, kernel=kernel, ridge=ridge),
    "fit": lambda x, y, q, kernel, ridge: ssdd_ext.fit(x, y, kernel=kernel, ridge=ridge),
    "cholesky_solve": lambda x, y, q, kernel, ridge: ssdd_ext.cholesky_solve(
        ssdd_ext.gram(x, kernel=kernel), y, ridge=ridge
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_warning_with_advice(name):
    with pytest.warns(RuntimeWarning, match=r"condition number .* [0-9]e\+0[678].*solve_dtype=torch.float64") as caught:
        CALLS[name](*ill_conditioned())
    assert "larger ridge (here Ridge.absolute(1e-05))" in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in CALLS.values():
            again(*ill_conditioned())


def test_no_warning_without_reason():
    x, y, q, kernel, ridge = ill_conditioned()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ssdd_ext.krr(x, y, q, kernel=kernel, ridge=ridge, solve_dtype=F64)
        ssdd_ext.krr(x.double(), y.double(), q.double(), kernel=kernel, ridge=ridge)
        ssdd_ext.krr(x, y, q, kernel=kernel, ridge=Ridge.absolute(1e-3))
        ssdd_ext.krr(x, y, q, kernel=kernel)  # the default ridge cannot reach the bound
        low_rank = torch.randn(300, 5)
        ssdd_ext.krr(low_rank, low_rank, low_rank, ridge=Ridge.absolute(1e-7))  # solved with a matrix of order 5
    kept = x.clone().requires_grad_()
    first = ssdd_ext.krr_mse(kept, y, q, q, kernel=kernel)
    second = ssdd_ext.krr_mse(kept, y, q, q, kernel=kernel)
    assert torch.equal(first, second)  # looking at the first call changes no bit


def test_looking_is_bounded():
    x, y, q = problem(4, 3, torch.float32)
    for i in range(precision.MOST_SITES + 10):
        ssdd_ext.krr(x, y, q, ridge=Ridge.absolute(1.0 + i))
    assert len(precision._seen) == precision.MOST_SITES
    threads = [threading.Thread(target=ssdd_ext.krr, args=(x, y, q)) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(precision._seen) == precision.MOST_SITES
