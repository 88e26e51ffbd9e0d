"""Squared distances by products and by differences on the core (csrc/cpu/distances.h): the error of kernels of them.

From 128 features and 64 points on each side, the core forms |x - z|^2 by a product about a common origin, and again by
differences where that loses digits. The bounds here are in units of the roundoff, for points anywhere.
"""

import numpy
import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Matern, RationalQuadratic
from ssdd_ext.testing import relative_error

S, Q = 70, 90
POINTS = (
    "gaussian",
    "clusters_1e2",
    "clusters_1e6",
    "near_duplicates",
    "one_cluster_and_outliers",
    "plane",
    "far_from_0",
)
KERNELS = {
    "rbf": RBF,
    "matern_1": lambda length: Matern(length, 0.5),
    "matern_3": lambda length: Matern(length, 1.5),
    "matern_5": lambda length: Matern(length, 2.5),
    "rational_quadratic": lambda length: RationalQuadratic(length, 0.7),
}


def points(kind, d, dtype, seed=0):
    """Return x [S, D] and z [Q, D], whose lengthscale is sqrt(D)."""
    generator = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (S, Q))
    if kind.startswith("clusters"):
        # 40 clusters are few enough pairs within one for products; see the test of three clusters below.
        apart = float(kind.partition("_")[2])
        for points in (x, z):
            points += torch.randint(0, 40, (len(points), 1), generator=generator) * apart
    elif kind == "near_duplicates":
        z[:30] = x[:30] + 1e-4 * z[:30]
        z[30:40] = x[30:40]
        x[60:] = x[50:60] * (1 + 1e-3 * x[60:])
    elif kind == "one_cluster_and_outliers":
        x[::20] *= 1e3
    elif kind == "plane":
        basis = torch.randn(2, d, generator=generator, dtype=torch.float64)
        x, z = x[:, :2] @ basis, z[:, :2] @ basis
    elif kind == "far_from_0":
        x, z = x + 1e3, z + 1e3
    return x.to(dtype), z.to(dtype)


def exact_squares(x, z):
    wide = numpy.longdouble if x.dtype == torch.float64 else numpy.float64
    a, b = x.numpy().astype(wide), z.numpy().astype(wide)
    return numpy.stack([((row - b) ** 2).sum(-1) for row in a])


def exact(name, squares, length):
    u = squares / numpy.longdouble(length) ** 2
    if name == "rbf":
        return numpy.exp(-u / 2)
    if name == "rational_quadratic":
        return (1 + u / (2 * 0.7)) ** -numpy.longdouble(0.7)
    r = numpy.sqrt(u * {"matern_1": 1, "matern_3": 3, "matern_5": 5}[name])
    return {"matern_1": 1, "matern_3": 1 + r, "matern_5": 1 + r + r * r / 3}[name] * numpy.exp(-r)


CASES = [
    *((kind, d, torch.float32) for kind in POINTS for d in (128, 8192)),
    *((kind, 128, torch.float64) for kind in POINTS),
    ("near_duplicates", 127, torch.float32),  # by differences alone
    ("near_duplicates", 2000, torch.float64),
]


@pytest.mark.parametrize(("kind", "d", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_gram_matrices(kind, d, dtype):
    unit = torch.finfo(dtype).eps / 2
    x, z = points(kind, d, dtype, seed=d)
    for other in (z, None):
        squares = exact_squares(x, x if other is None else other)
        # The rbf kernel shows the relative error of the distances near its lengthscale, here of any size.
        cases = [(name, d**0.5) for name in KERNELS] + [("rbf", 10.0**power * d**0.5) for power in range(-5, 7)]
        for name, length in cases:
            k = ssdd_ext.gram(x, other, kernel=KERNELS[name](length), backend="native").numpy()
            error = numpy.abs(k - exact(name, squares, length)).max() / unit
            assert error <= 8, (name, length, float(error))
            assert (k[squares == 0] == 1).all()


def test_points_of_any_strides():
    x, z = points("near_duplicates", 150, torch.float32)
    right = ssdd_ext.gram(x, z, kernel=RBF(12.0), backend="native")
    columns = ssdd_ext.gram(
        x.mT.contiguous().mT, z.repeat_interleave(2, -1)[:, ::2], kernel=RBF(12.0), backend="native"
    )
    assert relative_error(columns, right) < 1e-6
    assert (columns.diagonal()[30:40] == 1).all()  # equal points, by differences of strided rows


def test_a_point_that_is_not_finite_spoils_its_own_row_only():
    x, z = points("gaussian", 200, torch.float32)
    right = ssdd_ext.gram(x, z, kernel=RBF(14.0), backend="native")
    x[3, 5], z[7, 9], z[8, 1] = float("nan"), float("nan"), float("inf")
    k = ssdd_ext.gram(x, z, kernel=RBF(14.0), backend="native")
    assert k[3].isnan().all()
    assert k[:, 7].isnan().all()
    k[3], k[:, 7], right[3], right[:, 7], right[:, 8] = 0, 0, 0, 0, 0
    assert (k[:, 8] == 0).all()
    assert relative_error(k, right) < 1e-6


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kind", ["gaussian", "near_duplicates", "clusters_1e2", "clusters_1e6"])
def test_losses_and_gradients(kind, name):
    d, c = 160, 3
    generator = torch.Generator().manual_seed(1)
    x, z = points(kind, d, torch.float32)
    y, t = (torch.randn(n, c, generator=generator) for n in (S, Q))
    length = torch.tensor(d**0.5)

    def run(dtype, backend):
        leaves = [v.detach().to(dtype).requires_grad_() for v in (x, y, z, t, length)]
        how = {"kernel": KERNELS[name](leaves[4]), "ridge": ssdd_ext.Ridge.mean_trace(1e-2), "backend": backend}
        loss = ssdd_ext.krr_mse(*leaves[:4], **how)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    # The loss, then the gradients. The terms of the one to the lengthscale cancel: torch's error is up to 1.1e-4 in
    # twelve seeds, and in some of them 1e-6.
    least = (2e-5, 2e-5, 2e-5, 2e-5, 2e-5, 2e-4)
    results = run(torch.float32, "native"), run(torch.float32, "torch"), run(torch.float64, "torch")
    for ours, torch_, right, floor in zip(*results, least, strict=True):
        assert relative_error(ours, right) <= max(floor, 4 * relative_error(torch_, right))


def test_three_clusters_take_differences():
    """A third of the pairs are close, so products would be computed twice; both forms give the same kernel."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(S, 128, generator=generator) + 1e3 * torch.randint(0, 3, (S, 1), generator=generator)
    k = ssdd_ext.gram(x, kernel=RBF(11.0), backend="native").numpy()
    error = numpy.abs(k - exact("rbf", exact_squares(x, x), 11.0)).max()
    assert error <= 8 * torch.finfo(torch.float32).eps / 2
