"""The gradients of one Gram matrix on the core, of every kernel that has no other: values, chunks, layouts, orders."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import NTK, Matern, Polynomial
from ssdd_ext.ops import gram_slopes, native
from ssdd_ext.testing import PLANNED_KERNELS, relative_error

KERNELS = {n: k for n, k in PLANNED_KERNELS.items() if n not in ("sum", "product", "nested")}

# Their gradient is products of the op `gram` and of PyTorch.
BY_PRODUCTS = ("linear", "rbf", "cosine", "scaled", "ard")


def draw(batch, s, q, dtype, d=9):
    """Draw points whose memory is transposed; q = 0: no second set."""
    sizes = (s,) if q == 0 else (s, q)
    return [torch.randn(*batch, d, n, dtype=dtype).mT.requires_grad_() for n in sizes]


def poison():
    for work in native._spare:
        work.fill_(float("nan"))


def learned(kernel, dtype):
    leaves = []

    def leaf(p):
        leaves.append(torch.as_tensor(p, dtype=torch.float64).to(dtype).detach().requires_grad_())
        return leaves[-1]

    return kernel.map(leaf), leaves


def both(points, kernel, bar, **options):
    """Return the Gram matrix and all gradients."""
    k = ssdd_ext.gram(*points, kernel=kernel[0], **options)
    return k, torch.autograd.grad(k, [*points, *kernel[1]], bar)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("batch, s, q", [((), 23, 0), ((), 23, 40), ((2,), 6, 7), ((3,), 1, 0)], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_they_are_the_formula(name, batch, s, q, dtype, monkeypatch):
    points, kernel = draw(batch, s, q, dtype), learned(KERNELS[name], dtype)
    wide = [p.detach().double().requires_grad_() for p in points]
    exact = learned(KERNELS[name], torch.float64)
    bar = torch.randn(*batch, s, q or s, dtype=torch.float64)
    expected = both(wide, exact, bar, backend="torch")
    # Ten rows at a time.
    monkeypatch.setattr(gram_slopes, "K_QS_BYTES", 10 * (q or 1) * points[0].element_size())
    monkeypatch.setattr(gram_slopes, "LEAST_ROWS", 10)
    calls = []
    run = gram_slopes.core.gram_backward
    monkeypatch.setattr(gram_slopes.core, "gram_backward", lambda *a: calls.append(1) or run(*a))
    poison()
    got = both(points, kernel, bar.to(dtype).mT.contiguous().mT)
    assert len(calls) == (name not in BY_PRODUCTS)
    bound = 1e-10 if dtype == torch.float64 else 5e-5
    assert relative_error(got[0], expected[0]) < bound
    for one, other in zip(got[1], expected[1], strict=True):
        assert (one - other).norm() <= bound * max(float(other.norm()), 1.0)


@pytest.mark.parametrize("kernel", [Matern(2.0, 2.5), Polynomial(3, 0.5, 0.2), NTK(2, 1.4, 0.1)], ids=lambda k: k.name)
def test_second_derivatives_batched_gradients_and_threads(kernel):
    x, z = (p.detach()[:4].requires_grad_() for p in draw((), 5, 5, torch.float64, d=3))

    def f(x, z):
        return ssdd_ext.gram(x, z, kernel=kernel)

    assert torch.autograd.gradcheck(f, (x, z)) and torch.autograd.gradgradcheck(f, (x, z), fast_mode=True)
    k, bars = f(x, z), torch.randn(3, 4, 4, dtype=torch.float64)
    many = torch.autograd.grad(k, x, bars, is_grads_batched=True, retain_graph=True)[0]
    for bar, one in zip(bars, many, strict=True):
        assert relative_error(one, torch.autograd.grad(k, x, bar, retain_graph=True)[0]) < 1e-11
    points, bar = draw((), 150, 0, torch.float64, d=64), torch.randn(150, 150, dtype=torch.float64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(both(points, (kernel, []), bar)[1][0])
    finally:
        torch.set_num_threads(before)
    assert relative_error(found[1], found[0]) < 1e-12 and torch.equal(found[1], found[2])


def test_a_parameter_out_of_range_is_nan():
    x, lengthscale = torch.randn(4, 3, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    k = ssdd_ext.gram(x, kernel=Matern(lengthscale, 1.5))
    assert k.isnan().all()
    assert all(g.isnan().all() for g in torch.autograd.grad(k.sum(), (x, lengthscale)))
