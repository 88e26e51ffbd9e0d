"""Ridges per target and per point, by name; and hyper-parameters whose shape is no batch shape."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import ARD, RBF, FactorizationError, Linear, Matern, Ridge
from ssdd_ext.testing import relative_error

BACKENDS = ("auto", "torch")
KERNELS = {"linear": Linear(1.5, 0.5), "rbf": RBF(2.0), "matern": Matern(2.0, 1.5)}


def draw(random, *batch, s=9, q=5, d=4, c=3):
    data = [random(*batch, rows, columns, grad=True) for rows, columns in ((s, d), (s, c), (q, d), (q, c))]
    per_target, noise = (random(*batch, n).square().add(0.1).requires_grad_() for n in (c, s))
    return data, per_target, noise


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_by_name_they_are_the_formula(kernel, batch, backend, random):
    (x, y, q, t), per_target, noise = draw(random, *batch)
    k_ss, k_qs, eye = ssdd_ext.gram(x, kernel=kernel), ssdd_ext.gram(q, x, kernel=kernel), torch.eye(9).double()
    columns = [torch.linalg.solve(k_ss + per_target[..., c, None, None] * eye, y[..., c]) for c in range(3)]
    cases = {
        Ridge.per_target: (per_target, k_qs @ torch.stack(columns, -1)),
        Ridge.noise: (noise, k_qs @ torch.linalg.solve(k_ss + torch.diag_embed(noise), y)),
    }
    for ridge, (value, reference) in cases.items():
        options = {"ridge": ridge(value), "backend": backend}
        on_features = {"kernel": kernel, **options}
        for got in (
            ssdd_ext.krr(x, y, q, **on_features),
            ssdd_ext.fit(x, y, **on_features).predict(q),
            ssdd_ext.krr_from_gram(k_ss, y, k_qs, **options),
            k_qs @ ssdd_ext.cholesky_solve(k_ss, y, **options),
        ):
            assert relative_error(got, reference) < 1e-11
            leaves = (x, y, q, value)
            found, expected = (torch.autograd.grad(p.sin().sum(), leaves, retain_graph=True) for p in (got, reference))
            for a, b in zip(found, expected, strict=True):
                assert relative_error(a, b) < 1e-9
        loss = ssdd_ext.krr_mse(x, y, q, t, **on_features)
        torch.testing.assert_close(loss, (reference - t).square().mean((-2, -1)))
    p, std = ssdd_ext.fit(x, y, kernel=kernel, ridge=Ridge.noise(noise), backend=backend).predict(q, return_std=True)
    a = k_ss + torch.diag_embed(noise)
    variance = ssdd_ext.gram(q, kernel=kernel) - k_qs @ torch.linalg.solve(a, k_qs.mT)
    torch.testing.assert_close(std, variance.diagonal(dim1=-2, dim2=-1).sqrt())


@pytest.mark.parametrize("condition", [1e2, 7e3, 1e5])
def test_one_decomposition_rounds_little_more_than_a_factor_per_target(condition):
    """In float32, means over random problems: up to five times as much was seen; in float64, nothing of it is left."""
    errors = {key: torch.zeros(4, dtype=torch.float64) for key in ("auto", "planned", "torch", "float64")}
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        x, y, q, t = (torch.randn(n, m, generator=g) for n, m in ((40, 6), (40, 4), (20, 6), (20, 4)))
        top = torch.linalg.eigvalsh(ssdd_ext.gram(x.double(), kernel=RBF(3.0)))[-1]
        v = (top / condition * 10 ** torch.rand(4, generator=g)).float()

        def results(backend, dtype=torch.float32, x=x, y=y, q=q, t=t, v=v, **options):
            leaves = [a.to(dtype).requires_grad_() for a in (x, y, v)]
            ridge = Ridge.per_target(leaves[2])
            p = ssdd_ext.krr(*leaves[:2], q.to(dtype), kernel=RBF(3.0), ridge=ridge, backend=backend, **options)
            return [p, *torch.autograd.grad((p * t.to(dtype)).sum(), leaves)]

        exact = results("torch", torch.float64)
        for key, total in errors.items():
            named = {"backend": "auto", "solve_dtype": torch.float64} if key == "float64" else {"backend": key}
            total += torch.tensor([relative_error(a, b) for a, b in zip(results(**named), exact, strict=True)])
    assert (errors["auto"] < 8 * errors["torch"]).all() and (errors["planned"] < 8 * errors["torch"]).all()
    assert (errors["float64"] < 2 * errors["torch"]).all()


def test_machinery_of_torch(random):
    """Eigenvalues may coincide, as the gradient is not that of an eigenvector."""
    (x, y, q, _), per_target, noise = draw(random, s=4, q=2, d=2, c=2)
    for ridge, value in ((Ridge.per_target, per_target), (Ridge.noise, noise)):

        def f(x, y, q, value, ridge=ridge):
            return ssdd_ext.krr(x, y, q, kernel=RBF(1.0), ridge=ridge(value), on_failure="nan")

        leaves = (x, y, q, value)
        assert torch.autograd.gradcheck(f, leaves) and torch.autograd.gradgradcheck(f, leaves, fast_mode=True)
        batch = [torch.stack((t, t * 1.1)).detach() for t in leaves]
        torch.testing.assert_close(torch.func.vmap(f)(*batch), f(*batch))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(*leaves), f(*leaves))
    a = torch.eye(4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ssdd_ext.cholesky_solve(a, y, ridge=Ridge.per_target(per_target)).sum(), a)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_failures_of_one_ridge_per_target(backend, random):
    a = torch.stack((torch.eye(3), -torch.eye(3), torch.eye(3), torch.ones(3, 3))).double()
    y, value = random(4, 3, 2), torch.tensor([[1, 1], [0.5, 3], [-1, 1], [0, 1]], dtype=torch.float64)
    options = {"ridge": Ridge.per_target(value), "backend": backend}
    x, info = ssdd_ext.cholesky_solve(a, y, on_failure="nan", return_info=True, **options)
    assert (info.status > 0).tolist() == [False, True, False, True] and info.status[2] == -1
    assert x[0].isfinite().all() and x[1:].isnan().all()
    jittered, info = ssdd_ext.cholesky_solve(
        a[3], y[3], ridge=Ridge.per_target(value[3]), on_failure="jitter", return_info=True, backend=backend
    )
    assert info.status == 0 and info.jitter > 0 and jittered.isfinite().all()
    with pytest.raises(FactorizationError, match="problem 1 of 4"):
        ssdd_ext.cholesky_solve(a, y, **options)


SHAPES = {
    "targets": ({"ridge": Ridge.absolute(torch.ones(3))}, r"Ridge.absolute: .*got shape \(3,\).*Ridge.per_target\(v\)"),
    "points": ({"ridge": Ridge.trace(torch.ones(9))}, r"Ridge.trace: .*Ridge.noise\(v\).*x_s.expand\(9, "),
    "features": ({"kernel": RBF(torch.ones(4))}, r"RBF.lengthscale: .*got shape \(4,\).*ARD\(kernel, v\)"),
    "one": ({"kernel": Linear(torch.ones(1))}, r"Linear.scale: .*v.squeeze\(\)"),
    "nested": ({"kernel": RBF(1.0) + 2.0 * RBF(torch.ones(1))}, "Scaled.kernel: RBF.lengthscale: "),
    "factor": ({"kernel": torch.ones(2) * RBF(1.0)}, "Scaled.factor: "),
    "ard": ({"kernel": ARD(RBF(1.0), torch.ones(2, 4))}, "ARD.lengthscale: "),
    "wrong targets": ({"ridge": Ridge.per_target(torch.ones(9))}, "Ridge.per_target: expected 3 numbers .*per target"),
    "wrong points": ({"ridge": Ridge.noise(torch.ones(3))}, "Ridge.noise: expected 9 numbers .*per support point"),
    "batch": ({"ridge": Ridge.noise(torch.ones(2, 9))}, "Ridge.noise: .*at most 0 dimensions before the last"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_shape_that_the_inputs_lack_is_an_error_with_every_meaning(case, backend):
    options, message = SHAPES[case]
    backend = "auto" if case in ("nested", "factor", "ard") or "wrong" in case or case == "batch" else backend
    x, y, q = torch.ones(9, 4), torch.ones(9, 3), torch.ones(5, 4)
    for call in (
        lambda: ssdd_ext.krr(x, y, q, backend=backend, **options),
        lambda: ssdd_ext.krr_mse(x, y, q, torch.ones(5, 3), backend=backend, **options),
        lambda: ssdd_ext.fit(x, y, backend=backend, **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_size_that_the_batch_lacks_is_an_error_with_every_meaning():
    x, y, q = torch.ones(2, 9, 4), torch.ones(2, 9, 3), torch.ones(2, 5, 4)
    with pytest.raises(ValueError, match=r"must broadcast.*Ridge.per_target\(v\).*Ridge.noise\(v\)"):
        ssdd_ext.krr(x, y, q, ridge=Ridge.absolute(torch.ones(3)))
    with pytest.raises(ValueError, match=r"must broadcast.*ARD\(kernel, v\)"):
        ssdd_ext.gram(x, kernel=RBF(torch.ones(4)))


def test_what_the_messages_say_to_write_works(random):
    (x, y, q, _), per_target, noise = draw(random)
    grid = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    assert ssdd_ext.krr(x, y, q, kernel=RBF(torch.ones(1).squeeze())).shape == (5, 3)
    assert ssdd_ext.krr(x, y, q, kernel=ARD(RBF(1.0), noise[:4])).shape == (5, 3)
    many = ssdd_ext.krr(x.expand(3, *x.shape), y, q, ridge=Ridge.absolute(grid))
    torch.testing.assert_close(many[2], ssdd_ext.krr(x, y, q, ridge=Ridge.absolute(2.0)))
    with pytest.raises(TypeError, match="Ridge.per_target: expected a tensor .*got float; .*Ridge.absolute"):
        Ridge.per_target(1.0)
    with pytest.raises(ValueError, match="'native' cannot run krr here: it has no Ridge.noise"):
        ssdd_ext.krr(x, y, q, ridge=Ridge.noise(noise), backend="native")
    with pytest.raises(ValueError, match="return_std: expected one ridge for all targets"):
        ssdd_ext.fit(x, y, ridge=Ridge.per_target(per_target)).predict(q, return_std=True)
    with pytest.raises(ValueError, match="log_marginal_likelihood: expected one ridge"):
        ssdd_ext.log_marginal_likelihood(x, y, ridge=Ridge.per_target(per_target))
