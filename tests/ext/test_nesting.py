"""Transforms inside each other: vmap inside a gradient, jvp inside jvp, a backward after its transform has ended."""

import math

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import ssdd_ext
from ssdd_ext import NNGP, NTK, RBF, ArcCosine, Cosine, Laplace, Linear, Matern, Polynomial, Ridge
from ssdd_ext.testing import relative_error

NAN = {"on_failure": "nan"}


def pulled(f, argument):
    """Return x -> J^T cos(f(x)) for one argument. Its backward runs when the transform has ended."""

    def g(*x):
        out, back = vjp(lambda v: f(*x[:argument], v, *x[argument + 1 :]), x[argument])
        return back(out.cos())[0]

    return g


def likelihood(x, y, scale):
    """Return the log marginal likelihood of Linear(scale, 0.5) with a ridge of 0.3, by its formula."""
    a = scale * x @ x.mT + 0.5 + 0.3 * torch.eye(len(x), dtype=x.dtype)
    fit = (y * torch.linalg.solve(a, y)).sum() + y.shape[-1] * torch.logdet(a)
    return -0.5 * (fit + y.numel() * math.log(2 * math.pi))


def spread(x, y, scale):
    """Return the deviations at x + 1 of a Gaussian process of that kernel, by their formula."""
    q, eye = x + 1, torch.eye(len(x), dtype=x.dtype)
    k_qs = scale * q @ x.mT + 0.5
    lost = (k_qs * torch.linalg.solve(scale * x @ x.mT + 0.5 + 0.3 * eye, k_qs.mT).mT).sum(-1)
    return (scale * q.square().sum(-1) + 0.5 - lost).sqrt()


@pytest.mark.parametrize("call", ["likelihood", "deviation"])
@pytest.mark.parametrize("backend", ["auto", "planned", "torch"])
@pytest.mark.parametrize("d", [2, 6], ids=["primal", "dual"])
def test_a_gradient_of_what_is_mapped_inside_it(call, backend, d, random):
    x, y, scale = random(3, 4, d), random(3, 4, 2), random(3).abs() + 0.5

    def f(x, y, scale):
        options = {"kernel": Linear(scale, 0.5), "ridge": Ridge.absolute(0.3), "backend": backend, **NAN}
        if call == "likelihood":
            return ssdd_ext.log_marginal_likelihood(x, y, **options)
        return ssdd_ext.fit(x, y, **options).predict(x + 1, return_std=True)[1]

    formula = likelihood if call == "likelihood" else spread
    for argument in (0, 1, 2) if call == "likelihood" else (0, 2):
        got = grad(lambda *t: vmap(f)(*t).sin().sum(), argnums=argument)(x, y, scale)
        own = [
            grad(lambda *t: formula(*t).sin().sum(), argnums=argument)(*one) for one in zip(x, y, scale, strict=True)
        ]
        assert relative_error(got, torch.stack(own)) < 1e-10


SMOOTH = [Matern(1.1, 1.5), Matern(1.1, 2.5), ArcCosine(1), NNGP(2), NTK(2), Polynomial(3), Cosine(), RBF(1.1)]


@pytest.mark.parametrize("kernel", [*SMOOTH, Laplace(1.1), ArcCosine(0)], ids=repr)
def test_forward_mode_inside_forward_mode(kernel, random):
    """PyTorch takes the jvp of a custom Function inside another jvp for a constant, and the result for 0."""
    x, direction = random(4, 3), random(4, 3)

    def f(x):
        return ssdd_ext.gram(x, kernel=kernel, backend="torch")

    def along(f):
        return lambda x: jvp(f, (x,), (direction,))[1]

    reference = torch.einsum("ijklmn,kl,mn->ij", jacrev(jacrev(f))(x), direction, direction)
    assert reference.abs().max() > 1e-3
    assert relative_error(along(along(f))(x), reference) < 1e-10
    third = torch.einsum("ijkl,kl->ij", jacrev(along(along(f)))(x), direction)
    assert relative_error(along(along(along(f)))(x), third) < 1e-9


def test_forward_mode_twice_over_a_backward(random):
    """A product inside a gradient is one of these Functions too."""
    x = random(4, 3)
    inner = grad(lambda x: ssdd_ext.gram(x, kernel=Polynomial(2, 0.7), backend="torch").sin().sum())
    assert relative_error(jacfwd(jacfwd(inner))(x), jacrev(jacrev(inner))(x)) < 1e-10


@pytest.mark.parametrize("call", ["krr", "krr_mse", "cholesky_solve", "krr_mse_from_gram", "log_marginal_likelihood"])
@pytest.mark.parametrize("kernel", [Linear(), Matern(1.1, 1.5)], ids=["linear", "matern"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0)], ids=str)
def test_a_backward_after_its_transform_has_ended(call, kernel, order, random):
    """As torch.func.vjp returns it. Saved tensors then belong to a transform that is over."""
    x, y, q, t = random(2, 4, 3), random(2, 4, 2), random(2, 3, 3), random(2, 3, 2)

    def f(x, y, q, t, backend="auto"):
        options = {"ridge": Ridge.mean_trace(0.3), "backend": backend, **NAN}
        a = x @ x.mT + torch.eye(4, dtype=x.dtype)
        if call == "cholesky_solve":
            return ssdd_ext.cholesky_solve(a, y, **options)
        if call == "krr_mse_from_gram":
            return ssdd_ext.krr_mse_from_gram(a, y, q @ x.mT, t, **options)
        given = {"krr": (x, y, q), "krr_mse": (x, y, q, t), "log_marginal_likelihood": (x, y)}[call]
        return getattr(ssdd_ext, call)(*given, kernel=kernel, **options)

    first, second = order
    every = pulled(pulled(f, first), second)
    reference = pulled(pulled(lambda *given: f(*given, backend="torch"), first), second)
    arguments = x, y, q, t
    each = [reference(*(one[i] for one in arguments)) for i in range(2)]
    assert relative_error(every(*(one[0] for one in arguments)), each[0]) < 1e-9
    assert relative_error(vmap(every)(*arguments), torch.stack(each)) < 1e-9


def test_targets_that_are_mapped_twice(random):
    """torch's mse_loss fails here."""
    k_ss, y, k_qs, t = torch.eye(4, dtype=torch.float64), random(4, 2), random(3, 4), random(2, 5, 3, 2)

    def f(k_qs, t):
        return ssdd_ext.krr_mse_from_gram(k_ss, y, k_qs, t, ridge=Ridge.absolute(0.5), **NAN)

    got = vmap(vmap(f, in_dims=(None, 0)), in_dims=(None, 0))(k_qs, t)
    assert relative_error(got, (k_qs @ y / 1.5 - t).square().mean((-2, -1))) < 1e-12


@pytest.mark.parametrize("call", ["path", "loo", "deviation"])
def test_calls_without_forward_mode_say_so(call, random):
    x, y, q = random(4, 3), random(4, 2), random(5, 3)

    def f(x, y, q, backend):
        if call == "deviation":
            given = {"ridge": Ridge.absolute(0.3), "backend": backend, **NAN}
            return ssdd_ext.fit(x.detach(), y, **given).predict(q, return_std=True)[1]
        ridges = Ridge.absolute(torch.tensor([0.1, 1.0], dtype=x.dtype))
        path = ssdd_ext.krr_path(x, y, ridges=ridges, backend=backend, **NAN)
        return path.loo() if call == "loo" else path.predict(q)

    moved = 2 if call == "deviation" else 1
    with pytest.raises(NotImplementedError, match="forward-mode .* pass backend='torch'"):
        jacfwd(lambda *t: f(*t, "auto"), argnums=moved)(x, y, q)
    got = jacfwd(lambda *t: f(*t, "torch"), argnums=moved)(x, y, q)
    assert relative_error(got, jacrev(lambda *t: f(*t, "torch"), argnums=moved)(x, y, q)) < 1e-10
