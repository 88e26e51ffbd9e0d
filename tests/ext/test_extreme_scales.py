"""Points and lengthscales so large or small that squares leave the range of the dtype, and gradients that are far
smaller than the terms of their sums."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import ARD, RBF, ArcCosine, FactorizationError, Laplace, Linear, Matern, RationalQuadratic, Ridge
from ssdd_ext.testing import kernel_matrix, regularised, relative_error

BACKENDS = ("native", "planned", "torch")
RIDGE = Ridge.mean_trace(1e-2)
# Of points of unit scale, with lengthscale v.
KERNELS = {
    "rbf": lambda v: RBF(v),
    "matern_1": lambda v: Matern(v, 0.5),
    "matern_5": lambda v: Matern(v, 2.5),
    "laplace": lambda v: Laplace(v),
    "laplace_1": lambda v: Laplace(2 * v, norm=1),
    "rational_quadratic": lambda v: RationalQuadratic(v, 0.7),
    "scaled": lambda v: 0.3 * RBF(v),
    "sum": lambda v: RBF(v) + Matern(2 * v, 1.5),
    "ard": lambda v: ARD(RBF(2.0**50), torch.full((130,), 2.0**-50 * v, dtype=torch.float64)),
}
SCALES = [(torch.float32, 1e-20), (torch.float32, 1e20), (torch.float64, 1e-160), (torch.float64, 1e160)]


def formula(kernel, x_s, y_s, x_q):
    a = regularised(kernel_matrix(kernel, x_s, x_s), RIDGE)
    return kernel_matrix(kernel, x_q, x_s) @ torch.linalg.solve(a, y_s)


def gradients(predict, x_s, y_s, x_q, scale=1.0):
    """Return the predictions, and the gradients of their sum of squares in units of the points."""
    x_s, y_s, x_q = (t.detach().clone().requires_grad_() for t in (x_s, y_s, x_q))
    p = predict(x_s, y_s, x_q)
    x_s_bar, y_s_bar, x_q_bar = torch.autograd.grad(p.square().sum(), (x_s, y_s, x_q))
    return p, x_s_bar * scale, y_s_bar, x_q_bar * scale


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "scale"), SCALES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_lengthscale_of_any_size_is_the_formula_of_points_of_unit_scale(name, dtype, scale, backend, random):
    x_s, y_s, x_q = random(9, 130), random(9, 3), random(7, 130)
    x_s, x_q = ((t * scale).to(dtype) for t in (x_s, x_q))
    y_s = y_s.to(dtype)
    units = x_s.double() / scale, y_s.double(), x_q.double() / scale
    expected = gradients(lambda *a: formula(KERNELS[name](9.0), *a), *units)
    options = {"kernel": KERNELS[name](9.0 * scale), "ridge": RIDGE, "backend": backend}
    calls = [lambda *a: ssdd_ext.krr(*a, **options)]
    if backend == "native":
        calls.append(lambda a, b, c: ssdd_ext.fit(a, b, **options).predict(c))
    for call in calls:
        for one, other in zip(gradients(call, x_s, y_s, x_q, scale), expected, strict=True):
            assert relative_error(one, other) <= (2e-4 if dtype == torch.float32 else 1e-11)


def test_every_call_takes_such_a_lengthscale(random):
    x, y, q = (random(n, m).float() for n, m in ((6, 4), (6, 2), (5, 4)))
    scale = 2.0**70
    options = {"ridge": Ridge.absolute(0.1)}
    calls = {
        "krr_mse": lambda k, c: ssdd_ext.krr_mse(c * x, y, c * q, q[:, :2], kernel=k, **options),
        "krr_cross_entropy": lambda k, c: ssdd_ext.krr_cross_entropy(
            c * x, y, c * q, torch.tensor([0, 1, 1, 0, 1]), kernel=k, **options
        ),
        "log_marginal_likelihood": lambda k, c: ssdd_ext.log_marginal_likelihood(c * x, y, kernel=k, **options),
        "krr_path": lambda k, c: ssdd_ext.krr_path(
            c * x, y, kernel=k, ridges=Ridge.absolute(torch.tensor([0.1, 1.0]))
        ).predict(c * q),
        "deviation": lambda k, c: ssdd_ext.fit(c * x, y, kernel=k, **options).predict(c * q, return_std=True)[1],
        "batch": lambda k, c: ssdd_ext.krr((c * x).expand(40, 6, 4), y.expand(40, 6, 2), q * c, kernel=k, **options),
    }
    for name, call in calls.items():
        torch.testing.assert_close(
            call(RBF(2.0 * scale), scale), call(RBF(2.0), 1.0), msg=lambda m, name=name: name + m
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1e-21, 1e21])
def test_a_tensor_whose_square_leaves_the_dtype_is_refused(length, backend, random):
    x, y = (random(5, 3) * length).float(), random(5, 2).float()
    for kernel in (RBF(torch.tensor(length)), Matern(torch.tensor(length), 1.5)):
        assert ssdd_ext.gram(x, kernel=kernel, backend=backend).isnan().all()
        with pytest.raises(FactorizationError, match="hyper-parameter out of range.*square"):
            ssdd_ext.krr(x, y, x, kernel=kernel, ridge=RIDGE, backend=backend)
    wide = ssdd_ext.gram(x.double(), kernel=RBF(torch.tensor(length, dtype=torch.float64)), backend=backend)
    assert relative_error(wide, ssdd_ext.gram(x.double() / length, kernel=RBF(1.0))) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [RBF(1.0), Matern(1.0, 2.5), RationalQuadratic(1.0, 9.0)], ids=lambda k: k.name)
def test_gradients_between_points_far_apart_are_relative_to_themselves(kernel, backend, random):
    """A point's distance from itself is constant. Its terms must not drown those of the others."""
    x, weight = random(6, 60), random(6, 6)
    bars = []
    for k_of in (lambda x: ssdd_ext.gram(x, kernel=kernel, backend=backend), lambda x: kernel_matrix(kernel, x, x)):
        points = x.clone().requires_grad_()
        bars.append(torch.autograd.grad((k_of(points) * weight).sum(), points)[0])
    assert bars[1].abs().max() < 1e-6
    assert relative_error(*bars) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [ArcCosine(0), ArcCosine(1)], ids=lambda k: k.spec)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_at_a_point_zero_is_zero(kernel, symmetric, backend, random):
    x, z = random(5, 4), random(3, 4)
    x[1], z[2] = 0, 0
    x.requires_grad_()
    z.requires_grad_()
    k = ssdd_ext.gram(x, None if symmetric else z, kernel=kernel, backend=backend)
    bars = torch.autograd.grad(k.sum(), (x,) if symmetric else (x, z))
    assert not bars[0][1].any()
    assert symmetric or not bars[1][2].any()
    assert all(bar.isfinite().all() and bar.any() for bar in bars)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [Linear(), Linear(bias=1.0), RBF(1.0)], ids=["linear", "bias", "rbf"])
def test_points_without_features(kernel, backend, random):
    x, y, q = random(4, 0), random(4, 2), random(3, 0)
    expected = kernel_matrix(kernel, q, x) @ torch.linalg.solve(kernel_matrix(kernel, x, x) + torch.eye(4), y)
    p, info = ssdd_ext.krr(
        x, y, q, kernel=kernel, ridge=Ridge.absolute(1.0), backend=backend, on_failure="jitter", return_info=True
    )
    torch.testing.assert_close(p, expected)
    assert not info.status.any()
