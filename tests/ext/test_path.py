"""krr_path: many ridges from one decomposition, leave-one-out and GCV, against one fit each and scikit-learn."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, FactorizationError, Linear, Matern, Ridge, krr_path
from ssdd_ext.ops import spectrum
from ssdd_ext.ops.native import core
from ssdd_ext.ops.tridiagonal import tridiagonal
from ssdd_ext.testing import relative_error

BACKENDS = ("auto", "planned", "torch")
KERNELS = {"linear": Linear(1.5, 0.5), "tall": Linear(0.5), "matern": Matern(2.0, 1.5)}
VALUES = (0.1, 0.5, 3.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["absolute", "trace", "mean_trace", "per_target"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_each_ridge_is_a_fit_of_its_own(kernel, batch, kind, backend, random):
    x, y, q = random(*batch, 8, 4, grad=True), random(*batch, 8, 2, grad=True), random(*batch, 5, 4, grad=True)
    values = torch.tensor(VALUES, dtype=torch.float64)
    values = torch.stack((values, values.flip(0)), -1) if kind == "per_target" else values
    values.requires_grad_()
    path = krr_path(x, y, ridges=getattr(Ridge, kind)(values), kernel=kernel, backend=backend)
    got = path.predict(q)
    ridges = [getattr(Ridge, kind)(values[r]) for r in range(3)]
    reference = torch.stack([ssdd_ext.krr(x, y, q, kernel=kernel, ridge=r, backend="torch") for r in ridges], -3)
    assert got.shape == (*batch, 3, 5, 2) and relative_error(got, reference) < 1e-11
    leaves = (x, y, q, values)
    found, expected = (torch.autograd.grad(p.sin().sum(), leaves, retain_graph=True) for p in (got, reference))
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-9
    # Leaving a point out: by doing it, with lambda kept.
    lambdas = path.ridges if kind == "per_target" else path.ridges.unsqueeze(-1).expand(*path.ridges.shape, 2)
    residuals = []
    for i in range(8):
        kept = [j for j in range(8) if j != i]
        k_ss = ssdd_ext.gram(x[..., kept, :], kernel=kernel).unsqueeze(-3).unsqueeze(-3)
        a = k_ss + lambdas[..., None, None] * torch.eye(7, dtype=torch.float64)
        right = y[..., kept, :].mT.unsqueeze(-3).unsqueeze(-1)
        k_qs = ssdd_ext.gram(x[..., [i], :], x[..., kept, :], kernel=kernel).unsqueeze(-3).unsqueeze(-3)
        residuals.append(y[..., None, i, :] - (k_qs @ torch.linalg.solve(a, right)).squeeze((-1, -2)))
    assert relative_error(path.loo_residuals(), torch.stack(residuals, -2)) < 1e-10
    again = torch.autograd.grad(path.loo().sin().sum(), (x, y, values), retain_graph=True)
    by_hand = torch.stack(residuals, -2).square().mean(-2)
    for a, b in zip(again, torch.autograd.grad(by_hand.sin().sum(), (x, y, values)), strict=True):
        assert relative_error(a, b) < 1e-8


def test_without_gradients_the_scores_are_the_same(random):
    x, y = random(8, 4, grad=True), random(8, 2)
    for ridges in (
        Ridge.mean_trace(torch.tensor(VALUES)),
        Ridge.per_target(torch.tensor(VALUES)[:, None].expand(3, 2)),
    ):
        path = krr_path(x, y, ridges=ridges, kernel=RBF(2.0))
        with torch.no_grad():
            torch.testing.assert_close(krr_path(x, y, ridges=ridges, kernel=RBF(2.0)).loo(), path.loo().detach())
            torch.testing.assert_close(
                path.gcv(), krr_path(x, y, ridges=ridges, kernel=RBF(2.0), backend="torch").gcv()
            )


def test_the_scores_and_the_choice_of_scikit_learn(random):
    RidgeCV = pytest.importorskip("sklearn.linear_model").RidgeCV
    pytest.importorskip("sklearn", "1.5")  # store_cv_results
    x, y = random(20, 5), random(20, 3)
    y = x @ random(5, 3) + torch.tensor([0.1, 1.0, 3.0]) * y
    grid = torch.logspace(-3, 3, 25, dtype=torch.float64)
    path = krr_path(x, y, ridges=Ridge.absolute(grid))
    theirs = RidgeCV(alphas=grid.numpy(), fit_intercept=False, store_cv_results=True).fit(x.numpy(), y.numpy())
    squares = torch.from_numpy(theirs.cv_results_).mean(0).mT
    assert relative_error(path.loo(), squares) < 1e-10
    assert float(path.best().value) == pytest.approx(theirs.alpha_)
    theirs = RidgeCV(alphas=grid.numpy(), fit_intercept=False, alpha_per_target=True).fit(x.numpy(), y.numpy())
    best = path.best(per_target=True)
    torch.testing.assert_close(best.value, torch.from_numpy(theirs.alpha_))
    assert ssdd_ext.krr(x, y, x, ridge=best).shape == (20, 3)
    # GCV: of its definition, with the hat matrix.
    k_ss, eye = x @ x.mT, torch.eye(20, dtype=torch.float64)
    for at in (0, 12, 24):
        left = eye - k_ss @ torch.linalg.inv(k_ss + grid[at] * eye)
        reference = (left @ y).square().mean(0) / (left.trace() / 20) ** 2
        torch.testing.assert_close(path.gcv()[at], reference)
    assert path.best(by="gcv").value in grid


@pytest.mark.parametrize("kind", ["absolute", "per_target"])
@pytest.mark.parametrize(("batch", "batch_q"), [((), (3,)), ((3,), (2, 3)), ((), (2, 3)), ((2, 3), (3,)), ((3,), (1,))])
@pytest.mark.parametrize("queries", [1, 9])
def test_queries_may_have_other_batch_dimensions_than_the_fit(queries, batch, batch_q, kind, random):
    x, y, q = random(*batch, 6, 4), random(*batch, 6, 2), random(*batch_q, queries, 4)
    values = torch.tensor([[0.1, 0.4], [1.0, 3.0]], dtype=torch.float64)
    ridges = Ridge.per_target(values) if kind == "per_target" else Ridge.absolute(values[:, 0])
    p = krr_path(x, y, ridges=ridges, kernel=RBF(2.0)).predict(q)
    for i, row in enumerate(values):
        for c, value in enumerate(row if kind == "per_target" else row[:1].expand(2)):
            one = ssdd_ext.krr(x, y[..., c : c + 1], q, kernel=RBF(2.0), ridge=Ridge.absolute(float(value)))
            torch.testing.assert_close(p[..., i, :, c], one[..., 0])


def test_no_columns_are_rotated_without_touching_memory(random):
    x = random(9, 9)
    form = tridiagonal(x @ x.mT)
    needed = core.tridiagonal_workspace(9, 0, 1)
    work = torch.full((needed + 20_000,), 7.0, dtype=torch.float64)
    capsules = [torch.utils.dlpack.to_dlpack(t) for t in (form.reflectors, form.tau, random(9, 0))]
    core.tridiagonal_rotate(*capsules, True, torch.utils.dlpack.to_dlpack(work), 1, 9, 0, 1)
    assert (work == 7).all()
    path = krr_path(x, random(9, 2), ridges=Ridge.absolute(torch.ones(3, dtype=torch.float64)))
    assert path.predict(random(0, 9)).shape == (3, 0, 2)
    assert krr_path(x, random(9, 0), ridges=Ridge.absolute(torch.ones(3))).predict(random(4, 9)).shape == (3, 4, 0)


def test_a_form_refuses_another_batch(random):
    x = random(2, 5, 5)
    form = tridiagonal(x @ x.mT)
    shifts = torch.ones(2, 1, 1, dtype=torch.float64)
    for call in (
        lambda: form.rotate(random(5, 3)),
        lambda: form.rotate(random(3, 2, 5, 3)),
        lambda: form.solve_rotated(random(2, 5, 1, 3), shifts[0]),
        lambda: form.solve_rotated(random(5, 1, 3), shifts),
    ):
        with pytest.raises(ValueError, match=r"expected the batch \(2,\) of the form"):
            call()


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_batched_gradients_are_those_of_one_at_a_time(batch, random):
    x, y = random(*batch, 6, 4, grad=True), random(*batch, 6, 2, grad=True)
    ridges = torch.tensor([[0.1, 0.3], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    results = (
        krr_path(x, y, ridges=Ridge.per_target(ridges), kernel=RBF(2.0)).predict(x[..., :3, :]),
        ssdd_ext.krr(x, y, x[..., :3, :], ridge=Ridge.per_target(ridges[0]), kernel=RBF(2.0)),
    )
    for result in results:
        bars, given = random(5, *result.shape), (x, y, ridges)
        many = torch.autograd.grad(result, given, bars, is_grads_batched=True, retain_graph=True)
        for i, bar in enumerate(bars):
            for got, one in zip(many, torch.autograd.grad(result, given, bar, retain_graph=True), strict=True):
                torch.testing.assert_close(got[i], one)


def test_one_decomposition(monkeypatch, random):
    count = []
    form = spectrum.tridiagonal
    monkeypatch.setattr(spectrum, "tridiagonal", lambda a: count.append(a.shape) or form(a))
    monkeypatch.setattr(torch.linalg, "eigh", None)
    x, y, values = random(8, 4, grad=True), random(8, 2), torch.tensor(VALUES, requires_grad=True)
    path = krr_path(x, y, ridges=Ridge.absolute(values), kernel=RBF(2.0))
    (path.loo().mean() + path.gcv().mean() + path.predict(x).mean()).backward()
    assert count == [(8, 8)]
    count.clear()
    per_target = torch.tensor([0.1, 2.0], requires_grad=True)
    ssdd_ext.krr(x, y, x, ridge=Ridge.per_target(per_target)).sum().backward()
    assert count == [(8, 8)]


def test_gradients_of_every_order(random):
    x, y, values = random(4, 2, grad=True), random(4, 2, grad=True), torch.tensor(VALUES[:2]).double().requires_grad_()

    def loo(x, y, values):
        return krr_path(x, y, ridges=Ridge.absolute(values), kernel=RBF(1.0), on_failure="nan").loo()

    def predict(x, y, values):
        return krr_path(x, y, ridges=Ridge.absolute(values), kernel=RBF(1.0), on_failure="nan").predict(x)

    for f in (loo, predict):
        assert torch.autograd.gradcheck(f, (x, y, values)) and torch.autograd.gradgradcheck(
            f, (x, y, values), fast_mode=True
        )
        batch = [torch.stack((t, t * 1.1)).detach() for t in (x, y, values)]
        torch.testing.assert_close(torch.func.vmap(f)(*batch), torch.stack([f(*(t[n] for t in batch)) for n in (0, 1)]))
        torch._dynamo.reset()
        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, y, values), f(x, y, values))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sizes", [(7, 5, 40), (7, 30, 3)], ids=["many queries", "many targets"])
def test_predictions_rotate_the_smaller_side(sizes, shared, random):
    s, c, q = sizes
    x, y, z, values = random(s, 4), random(s, c), random(q, 4), torch.linspace(0.5, 2, 3, dtype=torch.float64)
    ridges = Ridge.absolute(values) if shared else Ridge.per_target(values[:, None] * random(c).square().add(0.5))
    path, k = krr_path(x, y, ridges=ridges), x @ x.mT
    for r, p in enumerate(path.predict(z)):
        shifts = ridges.value[r] if not shared else values[r].expand(c)
        for i in range(c):
            alpha = torch.linalg.solve(k + shifts[i] * torch.eye(s), y[:, i])
            torch.testing.assert_close(p[:, i], z @ x.mT @ alpha)


def test_bad_arguments_and_failures():
    x, y = torch.ones(4, 2), torch.ones(4, 3)
    for ridges in (
        0.1,
        torch.ones(3),
        Ridge.absolute(0.1),
        Ridge.noise(torch.ones(4)),
        Ridge.per_target(torch.ones(3)),
    ):
        with pytest.raises(TypeError, match="^ridges: expected a Ridge of a tensor, such as"):
            krr_path(x, y, ridges=ridges)
    with pytest.raises(ValueError, match="^ridges: expected at least one"):
        krr_path(x, y, ridges=Ridge.absolute(torch.ones(0)))
    with pytest.raises(ValueError, match="^ridges: expected a tensor of 1 dimensions more than the batch"):
        krr_path(x, y, ridges=Ridge.absolute(torch.ones(2, 3)))
    with pytest.raises(ValueError, match="Ridge.per_target: expected 3 numbers"):
        krr_path(x, y, ridges=Ridge.per_target(torch.ones(5, 2)))
    with pytest.raises(ValueError, match="'native' cannot run krr_path"):
        krr_path(x, y, ridges=Ridge.absolute(torch.ones(2)), backend="native")
    with pytest.raises(ValueError, match="^by: expected one of 'loo', 'gcv'"):
        krr_path(x, y, ridges=Ridge.absolute(torch.ones(2))).best(by="aic")
    for backend in BACKENDS:
        with pytest.raises(FactorizationError, match="^krr_path: .*not positive definite"):
            krr_path(x, y, ridges=Ridge.absolute(torch.tensor([1.0, 0.0])), backend=backend)
        path = krr_path(x, y, ridges=Ridge.absolute(torch.tensor([1.0, -1.0])), backend=backend, on_failure="nan")
        assert path.info.status == -1 and path.predict(x).isnan().all()
