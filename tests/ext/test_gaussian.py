"""Weights of points, the predictive variance and the marginal likelihood: against formulas and scikit-learn."""

import pickle

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF as SklearnRBF
from sklearn.gaussian_process.kernels import DotProduct
from sklearn.gaussian_process.kernels import Matern as SklearnMatern
from sklearn.kernel_ridge import KernelRidge
from torch.distributions import MultivariateNormal

import ssdd_ext
from ssdd_ext import ARD, NTK, RBF, Cosine, Linear, Matern, Polynomial, Ridge
from ssdd_ext.testing import Problem, draw, gradients, kernel_matrix, predictions, regularised, relative_error

ROWS = {
    "dual": Problem("dual", 9, 7, 20, 3, Linear(1.5, 0.5), Ridge.mean_trace(1e-2)),
    "primal": Problem("primal", 20, 7, 5, 3, Linear(1.5, 0.5), Ridge.trace(1e-2, detach=False)),
    "primal_detached": Problem("primal", 20, 7, 5, 3, Linear(1.5), Ridge.trace(1e-2)),
    "absolute": Problem("absolute", 9, 7, 20, 3, RBF(4.0), Ridge.absolute(0.1)),
    "batch": Problem("batch", 9, 7, 20, 3, RBF(4.0), Ridge.mean_trace(1e-2), batch=(2, 3), hyper="batch"),
    "scalar": Problem("scalar", 20, 7, 5, 3, Linear(1.5, 0.5), Ridge.mean_trace(1e-2), batch=(2,), hyper="scalar"),
    "planned": Problem("planned", 9, 7, 5, 3, 2.0 * Matern(2.0, 1.5) + Linear(0.5), Ridge.trace(0.1), hyper="scalar"),
}


@pytest.fixture(params=ROWS)
def case(request, backend):
    row = ROWS[request.param]
    backend = "auto" if request.param == "planned" and backend == "native" else backend
    return draw(row), {"backend": backend, "on_failure": "nan"}


def agree(got, exact, inputs, *more, limit=1e-10):
    assert got.shape == exact.shape and relative_error(got, exact) < limit
    expected, found = gradients(exact, inputs), gradients(got, inputs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) < 10 * limit, name
    for leaf in more:
        a, b = (torch.autograd.grad(t.square().sum(), leaf, retain_graph=True)[0] for t in (got, exact))
        assert relative_error(a, b) < 10 * limit


def test_the_deviation_is_that_of_the_process(case):
    i, options = case
    fitted = ssdd_ext.fit(i.x_s, i.y_s, kernel=i.kernel, ridge=i.ridge, **options)
    p, std = fitted.predict(i.x_q, return_std=True)
    a = regularised(kernel_matrix(i.kernel, i.x_s, i.x_s), i.ridge)
    k_qs, k_qq = kernel_matrix(i.kernel, i.x_q, i.x_s), kernel_matrix(i.kernel, i.x_q, i.x_q)
    exact = (k_qq - k_qs @ torch.linalg.solve(a, k_qs.mT)).diagonal(dim1=-2, dim2=-1).sqrt()
    agree(std, exact, i)
    agree(p, predictions(i), i)


def test_the_likelihood_is_that_of_the_process(case):
    i, options = case
    got = ssdd_ext.log_marginal_likelihood(i.x_s, i.y_s, kernel=i.kernel, ridge=i.ridge, **options)
    a = regularised(kernel_matrix(i.kernel, i.x_s, i.x_s), i.ridge).unsqueeze(-3)
    normal = MultivariateNormal(torch.zeros(a.shape[-1], dtype=a.dtype), (a + a.mT) / 2)
    agree(got, normal.log_prob(i.y_s.mT).sum(-1), i)


def test_weights_of_support_points(case):
    """A weight of n equals n copies of the point; a weight of 0 removes it."""
    i, options = case
    weight = torch.linspace(0.5, 2.0, i.x_s.shape[-2], dtype=torch.float64).requires_grad_()
    fitted = ssdd_ext.fit(i.x_s, i.y_s, kernel=i.kernel, ridge=i.ridge, sample_weight=weight, **options)
    p, std = fitted.predict(i.x_q, return_std=True)
    k_ss = kernel_matrix(i.kernel, i.x_s, i.x_s)
    a = k_ss + (regularised(k_ss, i.ridge) - k_ss) / weight
    k_qs, k_qq = kernel_matrix(i.kernel, i.x_q, i.x_s), kernel_matrix(i.kernel, i.x_q, i.x_q)
    agree(p, k_qs @ torch.linalg.solve(a, i.y_s), i, weight)
    exact = (k_qq - k_qs @ torch.linalg.solve(a, k_qs.mT)).diagonal(dim1=-2, dim2=-1).sqrt()
    agree(std, exact, i, weight)


@pytest.mark.parametrize("kernel", [Linear(1.5), RBF(2.0)], ids=repr)
def test_a_weight_of_zero_removes_a_point_and_two_doubles_it(kernel, backend, random):
    x, y, q = random(8, 4), random(8, 2), random(5, 4)
    options = {"kernel": kernel, "ridge": Ridge.absolute(0.1), "backend": backend}
    weight = torch.tensor([1, 0, 2, 1, 1, 1, 1, 1], dtype=torch.float64)
    rows = [0, 2, 2, 3, 4, 5, 6, 7]
    exact = ssdd_ext.fit(x[rows], y[rows], **options).predict(q, return_std=True)
    got = ssdd_ext.fit(x, y, sample_weight=weight, **options).predict(q, return_std=True)
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_weights_of_queries(case):
    i, options = case
    options = {"ridge": i.ridge, **options}
    weight = torch.linspace(0.0, 2.0, i.x_q.shape[-2], dtype=torch.float64).requires_grad_()
    squares = (predictions(i) - i.y_q).square().mean(-1)
    exact = (weight * squares).sum(-1) / weight.sum()
    data = i.x_s, i.y_s, i.x_q, i.y_q
    agree(ssdd_ext.krr_mse(*data, kernel=i.kernel, sample_weight=weight, **options), exact, i, weight)
    k_ss, k_qs = kernel_matrix(i.kernel, i.x_s, i.x_s), kernel_matrix(i.kernel, i.x_q, i.x_s)
    options["backend"] = "auto" if options["backend"] == "native" else options["backend"]
    got = ssdd_ext.krr_mse_from_gram(k_ss, i.y_s, k_qs, i.y_q, sample_weight=weight, **options)
    agree(got, exact, i, weight)
    labels = i.y_q.argmax(-1)
    losses = -predictions(i).log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    got = ssdd_ext.krr_cross_entropy(*data[:3], labels, kernel=i.kernel, sample_weight=weight, **options)
    assert relative_error(got, (weight * losses).sum(-1) / weight.sum()) < 1e-10


@pytest.mark.parametrize(
    "ours, theirs",
    [(RBF(2.0), SklearnRBF(2.0)), (Linear(1.0, 0.25), DotProduct(0.5)), (Matern(2.0, 2.5), SklearnMatern(2.0, nu=2.5))],
    ids=["rbf", "linear", "matern"],
)
def test_the_numbers_of_scikit_learn(ours, theirs, random):
    x, y, q, weight = random(12, 4), random(12, 2), random(5, 4), random(12).square()
    process = GaussianProcessRegressor(theirs, alpha=0.3, optimizer=None).fit(x.numpy(), y.numpy())
    mean, std = process.predict(q.numpy(), return_std=True)
    options = {"kernel": ours, "ridge": Ridge.absolute(0.3)}
    p, deviation = ssdd_ext.fit(x, y, **options).predict(q, return_std=True)
    assert relative_error(p, torch.from_numpy(mean)) < 1e-12
    assert relative_error(deviation, torch.from_numpy(std[:, 0])) < 1e-12
    likelihood = ssdd_ext.log_marginal_likelihood(x, y, **options)
    assert abs(float(likelihood) - process.log_marginal_likelihood()) < 1e-11
    k_ss, k_qs = ssdd_ext.gram(x, kernel=ours), ssdd_ext.gram(q, x, kernel=ours)
    ridge = KernelRidge(kernel="precomputed", alpha=0.3).fit(k_ss.numpy(), y.numpy(), sample_weight=weight.numpy())
    got = ssdd_ext.fit(x, y, sample_weight=weight, **options).predict(q)
    assert relative_error(got, torch.from_numpy(ridge.predict(k_qs.numpy()))) < 1e-12


@pytest.mark.parametrize(
    "kernel", [Linear(0.5), RBF(2.0), NTK(2), Polynomial(2), Cosine(), ARD(RBF(1.0), torch.ones(3))], ids=repr
)
def test_variances_of_single_points(kernel, random):
    """One query among many: k(x, x) is computed point by point, so a million queries need no square matrix."""
    x = random(2, 6, 3)
    got = ssdd_ext.reference.diagonal(x, kernel.map(lambda p: torch.as_tensor(p, dtype=torch.float64)))
    exact = ssdd_ext.gram(x, kernel=kernel).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(got.squeeze(-1), exact)


@pytest.mark.parametrize("backend", ["auto", "planned", "torch"])
@pytest.mark.parametrize("kernel", [Linear(0.5), RBF(2.0)], ids=["primal", "dual"])
@pytest.mark.parametrize("fits", [(), (1,), (2, 1)], ids=str)
def test_one_fit_predicts_for_many_batches_of_queries(fits, kernel, backend, random):
    x, y, q = random(*fits, 6, 3, grad=True), random(*fits, 6, 2), random(2, 4, 5, 3)
    fitted = ssdd_ext.fit(x, y, kernel=kernel, ridge=Ridge.absolute(0.3), backend=backend)
    p, deviation = fitted.predict(q, return_std=True)
    assert p.shape == (2, 4, 5, 2) and deviation.shape == (2, 4, 5)
    (got,) = torch.autograd.grad(deviation.sum(), x)
    x_all, y_all = (t.expand(2, 4, *t.shape[-2:]) for t in (x, y))
    again = ssdd_ext.fit(x_all, y_all, kernel=kernel, ridge=Ridge.absolute(0.3)).predict(q, return_std=True)[1]
    torch.testing.assert_close(deviation, again)
    torch.testing.assert_close(got, torch.autograd.grad(again.sum(), x)[0])


def test_one_factorisation(monkeypatch, random):
    count = []
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: count.append(a.shape) or factor(a))
    x, y, q = random(6, 4, grad=True), random(6, 2), random(5, 4)
    planned = {"kernel": Matern(1.0, 1.5), "backend": "planned"}
    for call in (
        lambda: sum(t.sum() for t in ssdd_ext.fit(x, y, **planned).predict(q, return_std=True)),
        lambda: ssdd_ext.log_marginal_likelihood(x, y, ridge=Ridge.absolute(0.1), **planned),
    ):
        count.clear()
        torch.autograd.grad(call(), x)
        assert count == [(6, 6)]


@pytest.mark.parametrize("backend", ["auto", "planned"])
def test_torch_machinery(backend, random):
    x, y, q = random(4, 3, grad=True), random(4, 2, grad=True), random(3, 3, grad=True)
    weight = random(4).square().requires_grad_()
    options = {"kernel": RBF(2.0), "ridge": Ridge.mean_trace(0.1), "backend": backend, "on_failure": "nan"}

    def likelihood(x, y):
        return ssdd_ext.log_marginal_likelihood(x, y, **options)

    def std(x, y, q, weight):
        return ssdd_ext.fit(x, y, sample_weight=weight, **options).predict(q, return_std=True)[1]

    for f, leaves in ((likelihood, (x, y)), (std, (x, y, q, weight))):
        free = tuple(t.detach() if f is std and t is y else t for t in leaves)  # a deviation has nothing of y
        assert torch.autograd.gradcheck(f, free)
        assert torch.autograd.gradgradcheck(f, free, fast_mode=True)
        batch = tuple(torch.stack((t, t + 0.1)).detach() for t in leaves)
        exact = torch.stack([f(*(t[n] for t in batch)) for n in range(2)])
        torch.testing.assert_close(torch.func.vmap(f)(*batch), exact)
        torch.testing.assert_close(f(*batch), exact)
    if backend == "planned":
        return
    for f, leaves in ((likelihood, (x, y)), (std, (x, y, q, weight))):
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(*leaves), f(*leaves))


def test_a_fit_is_pickled_and_narrow_inputs_return_what_they_promise(random):
    x, y, q = (random(*shape, dtype=torch.float32) for shape in ((6, 3), (6, 2), (4, 3)))
    fitted = ssdd_ext.fit(x, y, kernel=RBF(1.0), solve_dtype=torch.float64)
    p, std = fitted.predict(q, return_std=True)
    assert p.dtype == std.dtype == torch.float32 and std.shape == (4,)
    again = pickle.loads(pickle.dumps(fitted)).predict(q, return_std=True)
    assert torch.equal(again[0], p) and torch.equal(again[1], std)
    at_support = ssdd_ext.fit(x, y, kernel=RBF(1.0), ridge=Ridge.absolute(1e-7)).predict(x, return_std=True)[1]
    assert (at_support < 1e-2).all() and at_support.isfinite().all()


BAD = {
    "sample_weight: expected 6 along dimension -1 to match x_s": lambda x, y, w: ssdd_ext.fit(
        x, y, sample_weight=w[:5]
    ),
    "sample_weight: expected 5 .* x_q": lambda x, y, w: ssdd_ext.krr_mse(x, y, x[:5], y[:5], sample_weight=w),
    "sample_weight: expected numbers >= 0, got -0.5": lambda x, y, w: ssdd_ext.fit(x, y, sample_weight=w - 1.5),
    "sample_weight: expected numbers >= 0, got -1": lambda x, y, w: ssdd_ext.krr_mse(x, y, x, y, sample_weight=-w),
    "sample_weight: expected a torch.Tensor, got list": lambda x, y, w: ssdd_ext.fit(x, y, sample_weight=[1.0] * 6),
    "sample_weight: expected 4 .* k_qs": lambda x, y, w: ssdd_ext.krr_mse_from_gram(
        x @ x.mT, y, x[:4] @ x.mT, y[:4], sample_weight=w
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_weights_are_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        BAD[message](torch.eye(6), torch.ones(6, 2), torch.ones(6))
