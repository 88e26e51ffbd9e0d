"""Gradients through the RBF kernel for points in clusters far apart: unscaled columns, time stamps, coordinates.

The gradients are sums of g (z - x), in which all terms except the differences within a cluster must be exactly zero.
Computed as products about one origin, (g z) - (sum g) x, they lose the digits that the distance between the clusters
takes.
"""

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Matern, RationalQuadratic, Ridge
from ssdd_ext.testing import kernel_matrix, regularised, relative_error

FAR = [0.0, 3.0, 30.0, 1e2, 1e4, 1e6]
# S, Q, D, C, lengthscale, batch
SHAPES = {
    "report": (60, 50, 4, 2, 1.0, ()),
    "one_feature": (70, 40, 1, 3, 0.2, ()),
    "short": (60, 50, 5, 2, 0.3, (2,)),
    "many_features": (50, 70, 130, 5, 9.0, ()),
    "tiles": (150, 90, 70, 8, 6.0, ()),
    "batch": (30, 40, 12, 2, 3.0, (2, 3)),
}


def problem(shape, far, seed=0, mixed=False):
    """Return float32 leaves; mixed: only the first problem of the batch has distant clusters."""
    s, q, d, c, length, batch = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def points(count):
        x = torch.randn(*batch, count, d, generator=generator)
        cluster = torch.randint(0, 3, (*batch, count, 1), generator=generator) * far
        if mixed:
            cluster[1:] *= 0
        return x + cluster

    x = {"x_s": points(s), "y_s": torch.randn(*batch, s, c, generator=generator), "x_q": points(q)}
    x |= {"y_q": torch.randn(*batch, q, c, generator=generator), "lengthscale": torch.full(batch, length)}
    x |= {"ridge": torch.full(batch, 1e-2)}
    return {n: t.requires_grad_() for n, t in x.items()}


def exact_mse(x):
    kernel, ridge = RBF(x["lengthscale"]), Ridge.mean_trace(x["ridge"])
    a = regularised(kernel_matrix(kernel, x["x_s"], x["x_s"]), ridge)
    p = kernel_matrix(kernel, x["x_q"], x["x_s"]) @ torch.linalg.solve(a, x["y_s"])
    return (p - x["y_q"]).square().mean((-2, -1)).sum()


def krr_mse(x, backend="native"):
    how = {"kernel": RBF(x["lengthscale"]), "ridge": Ridge.mean_trace(x["ridge"]), "backend": backend}
    return ssdd_ext.krr_mse(x["x_s"], x["y_s"], x["x_q"], x["y_q"], **how).sum()


def fit(x, backend="native"):
    how = {"kernel": RBF(x["lengthscale"]), "ridge": Ridge.mean_trace(x["ridge"]), "backend": backend}
    p = ssdd_ext.fit(x["x_s"], x["y_s"], **how).predict(x["x_q"])
    return (p - x["y_q"]).square().mean((-2, -1)).sum()


def krr(x, backend="native"):
    how = {"kernel": RBF(x["lengthscale"]), "ridge": Ridge.mean_trace(x["ridge"]), "backend": backend}
    p = ssdd_ext.krr(x["x_s"], x["y_s"], x["x_q"], **how)
    return (p - x["y_q"]).square().mean((-2, -1)).sum()


def gradients(loss, x):
    return dict(zip(x, torch.autograd.grad(loss, list(x.values())), strict=True))


def errors(found, right):
    """Return the largest error of each gradient, relative to its largest element, of the worst problem in the batch."""

    def worst(f, r, name):
        axes = (-2, -1) if name in ("x_s", "y_s", "x_q", "y_q") else ()
        off, size = (f.double() - r).abs(), r.abs()
        return float((off.amax(axes) / size.amax(axes)).max()) if axes else float((off / size.max()).max())

    return {n: worst(f, right[n], n) for n, f in found.items()}


def small(name):
    """Return the error that is always allowed. A hyper-parameter's gradient is one number, a sum that may cancel."""
    return 2e-6 if name in ("x_s", "y_s", "x_q", "y_q") else 1e-5


def hold(call, shape, far, mixed=False):
    # A few problems: the error of plain float32 in one of them may be small by chance.
    ours, plain = {}, {}
    for seed in range(4):
        x = problem(shape, far, seed, mixed)
        wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}
        right = gradients(exact_mse(wide), wide)
        for found, backend in ((ours, "native"), (plain, "torch")):
            for name, error in errors(gradients(call(x, backend), x), right).items():
                found.setdefault(name, []).append(error)
    for name in ours:
        assert max(ours[name]) <= max(6 * max(plain[name]), small(name)), (name, ours[name], plain[name])


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("call", [krr_mse, krr, fit])
def test_gradients_of_clusters_are_those_of_plain_float32(call, shape, far):
    hold(call, shape, far)


@pytest.mark.parametrize("call", [krr_mse, fit])
def test_far_and_near_problems_in_one_batch(call):
    hold(call, "batch", 1e5, mixed=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("far", FAR)
def test_gradients_of_a_gram_matrix(far, symmetric):
    for shape in ("report", "batch"):
        x = problem(shape, far)
        wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}
        columns = x["x_s" if symmetric else "x_q"].shape[-2]
        weight = torch.randn(*x["x_s"].shape[:-1], columns, generator=torch.Generator().manual_seed(5))
        names = ["x_s", "lengthscale"] if symmetric else ["x_s", "x_q", "lengthscale"]

        def through(values, function, weight=weight, names=names):
            k = function(RBF(values["lengthscale"]), values["x_s"], None if symmetric else values["x_q"])
            return dict(zip(names, torch.autograd.grad((k * weight).sum(), [values[n] for n in names]), strict=True))

        right = through(wide, lambda k, a, b: kernel_matrix(k, a, a if b is None else b), weight.double())
        found, plain = (
            errors(through(x, lambda k, a, b, backend=backend: ssdd_ext.gram(a, b, kernel=k, backend=backend)), right)
            for backend in ("native", "torch")
        )
        for name in names:
            assert found[name] <= max(4 * plain[name], 2 * small(name)), (shape, name, found, plain)


def test_the_form_follows_from_the_inputs_alone():
    """The same inputs give the same bits, on either side of the change of form."""
    for far in (1.0, 1e4):
        x = problem("tiles", far)
        first, second = (gradients(krr_mse(x), x) for _ in range(2))
        for name, grad in first.items():
            assert torch.equal(grad, second[name]), (far, name)


@pytest.mark.parametrize("backend", ["auto", "planned"])
@pytest.mark.parametrize("kernel", [RBF(1.0), Matern(1.0, 1.5), RationalQuadratic(1.0)], ids=lambda k: type(k).__name__)
def test_gram_matrices_of_every_smooth_kernel_keep_their_digits(kernel, backend):
    """Squared distances by products, also in float64, lose those within a cluster."""
    leaves = problem("report", 1e6)

    def run(backend, dtype):
        x, z = (leaves[name].detach().to(dtype).requires_grad_() for name in ("x_s", "x_q"))
        k = ssdd_ext.gram(x, z, kernel=kernel, backend=backend)
        return [k.detach(), *torch.autograd.grad(k.sin().sum(), (x, z))]

    for got, right in zip(run(backend, torch.float32), run("torch", torch.float64), strict=True):
        assert relative_error(got, right) < 1e-6
