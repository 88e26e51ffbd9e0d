"""Kernel functions other than Linear and RBF: values, gradients of every order, points that coincide, oracles."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import ssdd_ext
from ssdd_ext import ARD, NNGP, NTK, RBF, ArcCosine, Cosine, Laplace, Linear, Matern, Polynomial, Ridge, Scaled
from ssdd_ext.kernels import COMBINATIONS, KERNELS, SHIPPED
from ssdd_ext.testing import (
    FORMULAS,
    PLANNED_KERNELS,
    PLANNED_TABLE,
    draw,
    gradients,
    kernel_matrix,
    mse,
    relative_error,
)

BACKENDS = ("auto", "torch")


def gram_agrees(got, reference, inputs, limit):
    assert relative_error(got, reference.expand(got.shape)) < limit
    expected, found = gradients(reference.expand(got.shape), inputs), gradients(got, inputs)
    assert found.keys() == expected.keys()
    for leaf, gradient in expected.items():
        assert relative_error(found[leaf], gradient) < 100 * limit, leaf


@pytest.mark.parametrize("backend", (*BACKENDS, "planned"))
@pytest.mark.parametrize("name", PLANNED_TABLE)
def test_values_and_gradients_are_those_of_the_formula(name, backend):
    i = draw(PLANNED_TABLE[name])
    with torch.no_grad():  # the native core's, without a gradient
        assert relative_error(ssdd_ext.gram(i.x_s, kernel=i.kernel), kernel_matrix(i.kernel, i.x_s, i.x_s)) < 1e-13
    # A gradient to x_q alone is asked of the second only.
    gram_agrees(ssdd_ext.gram(i.x_s, kernel=i.kernel, backend=backend), kernel_matrix(i.kernel, i.x_s, i.x_s), i, 1e-13)
    between = ssdd_ext.gram(i.x_q, i.x_s, kernel=i.kernel, backend=backend)
    gram_agrees(between, kernel_matrix(i.kernel, i.x_q, i.x_s), i, 1e-13)
    loss = ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, kernel=i.kernel, ridge=i.ridge, backend=backend)
    gram_agrees(loss, mse(i), i, 1e-11)


@pytest.mark.parametrize("kernel", [ArcCosine(0), ArcCosine(1), NNGP(1)], ids=repr)
def test_opposite_points_have_an_angle_of_pi(kernel):
    """The kernel is 0 there, of the formula that other tests compare with too."""
    x = torch.tensor([[1.0, 2.0], [-2.0, -4.0], [1.0, -1.0]], dtype=torch.float64)
    for k in (*(ssdd_ext.gram(x, -1.5 * x, kernel=kernel, backend=b) for b in BACKENDS), kernel_matrix(kernel, x, -x)):
        assert float(k.diagonal().abs().max()) < 1e-8


@pytest.mark.parametrize("name", PLANNED_KERNELS)
def test_float32_has_the_digits_of_its_inputs(name):
    inputs = draw(dataclasses.replace(PLANNED_TABLE[f"{name}_numbers"], s=40, q=30), dtype=torch.float32)
    exact = inputs.to(torch.float64)
    kernel = inputs.kernel
    for x, wide in ((None, None), (inputs.x_s, exact.x_s)):
        got = ssdd_ext.gram(inputs.x_q, x, kernel=kernel)
        reference = kernel_matrix(kernel, exact.x_q, exact.x_q if wide is None else wide)
        assert got.dtype == torch.float32 and relative_error(got, reference) < 1e-6
        found, expected = gradients(got, inputs), gradients(reference, exact)
        for leaf, gradient in found.items():
            assert relative_error(gradient, expected[leaf]) < 3e-6, leaf


def test_every_kernel_has_a_row_and_a_formula():
    assert set(FORMULAS) == {kernel.name for kernel in SHIPPED}
    shown = {type(kernel) for kernel in PLANNED_KERNELS.values()} | {Linear, RBF}
    assert shown == {*SHIPPED, *COMBINATIONS} == set(KERNELS.values())


# --- gradients of every order, and torch's transforms ------------------------------------------------


@pytest.mark.parametrize("name", PLANNED_KERNELS)
def test_gradients_by_differences(name, random):
    kernel = PLANNED_KERNELS[name]
    values = [torch.as_tensor(v, dtype=torch.float64).clone().requires_grad_() for v in kernel.parameters]
    x, z = random(3, 9, grad=True), random(2, 9, grad=True)

    def gram(x, z, *given):
        own = iter(given)
        return ssdd_ext.gram(x, z, kernel=kernel.map(lambda _: next(own)))

    assert torch.autograd.gradcheck(gram, (x, z, *values))
    assert torch.autograd.gradgradcheck(gram, (x, z, *values), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLANNED_KERNELS)
def test_transforms(name, backend, random):
    kernel, x, z = PLANNED_KERNELS[name], random(3, 5, 9), random(3, 4, 9)

    def gram(x, z):
        return ssdd_ext.gram(x, z, kernel=kernel, backend=backend)

    assert relative_error(torch.func.vmap(gram)(x, z), gram(x, z)) < 1e-13
    jacobian = torch.func.vmap(torch.func.jacrev(gram))(x, z)
    for i in range(3):
        reference = torch.autograd.functional.jacobian(lambda x, z=z[i]: gram(x, z), x[i])
        assert relative_error(jacobian[i], reference) < 1e-12
    tangent = random(5, 9)
    moved = torch.func.jvp(lambda x: gram(x, z[0]), (x[0],), (tangent,))[1]
    assert relative_error(moved, (jacobian[0] * tangent).sum((-2, -1))) < 1e-12


@pytest.mark.parametrize("name", ["nested"])
def test_one_graph(name, random):
    kernel, x, z = PLANNED_KERNELS[name], random(5, 9, grad=True), random(4, 9, grad=True)

    def loss(x, z):
        return ssdd_ext.gram(x, z, kernel=kernel).square().sum() + ssdd_ext.gram(x, kernel=kernel).square().sum()

    torch._dynamo.reset()
    got, reference = torch.compile(loss, backend="aot_eager", fullgraph=True)(x, z), loss(x, z)
    torch.testing.assert_close(got, reference)
    for a, b in zip(torch.autograd.grad(got, (x, z)), torch.autograd.grad(reference, (x, z)), strict=True):
        torch.testing.assert_close(a, b)


# --- points that coincide ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLANNED_KERNELS)
def test_coincident_opposite_and_zero_points_have_finite_gradients(name, backend, dtype, random):
    kernel, x = PLANNED_KERNELS[name], random(6, 9)
    x[1], x[2], x[3] = x[0], -x[0], 0
    z = x.clone()[[0, 3, 4]]
    values = [torch.as_tensor(v).to(dtype).requires_grad_() for v in kernel.parameters]
    x, z = (t.to(dtype).requires_grad_() for t in (x, z))
    given = iter(values)
    own = kernel.map(lambda _: next(given))
    for k in (ssdd_ext.gram(x, kernel=own, backend=backend), ssdd_ext.gram(x, z, kernel=own, backend=backend)):
        first = torch.autograd.grad((k * k).sum(), [x, z, *values], create_graph=True, allow_unused=True)
        assert k.isfinite().all() and all(g.isfinite().all() for g in first if g is not None)
        total = sum(g.square().sum() for g in first if g is not None and g.requires_grad)
        second = torch.autograd.grad(total, [x, *values], allow_unused=True)
        assert all(g.isfinite().all() for g in second if g is not None)


@pytest.mark.parametrize("kernel", [Laplace(0.5), Matern(0.5, 0.5), Matern(0.5, 2.5), Cosine(), ArcCosine(0)], ids=repr)
@pytest.mark.parametrize("offset", [0.0, 1e3], ids=["centred", "far"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_diagonal_is_one(kernel, offset, dtype, random):
    k = ssdd_ext.gram((random(37, 29) + offset).to(dtype), kernel=kernel)
    if isinstance(kernel, Cosine):
        assert relative_error(k.diagonal(), torch.ones(37)) < 4 * torch.finfo(dtype).eps
    else:
        assert torch.equal(k.diagonal(), torch.ones_like(k.diagonal()))


@pytest.mark.parametrize("nu", [1.5, 2.5])
def test_curvature_of_matern_where_points_coincide(nu):
    """It is -nu / (nu - 1) / lengthscale^2 per direction. A root differentiated twice would give NaN or 0."""
    z = torch.zeros(1, 1, dtype=torch.float64)
    for backend in BACKENDS:

        def at(x, backend=backend):
            return ssdd_ext.gram(x.reshape(1, 1), z, kernel=Matern(0.7, nu), backend=backend).squeeze()

        curvature = torch.autograd.functional.hessian(at, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(curvature, torch.full_like(curvature, -nu / (nu - 1) / 0.7**2))


@pytest.mark.parametrize("kernel", [Laplace(1e-3), Matern(1e-3, 1.5), NTK(2)], ids=repr)
def test_near_points_far_from_the_origin_keep_their_digits(kernel, random):
    """Points 1e-4 apart, 10 from the origin: float32 products would lose their distances."""
    x = (10 + 1e-4 * random(20, 6)).float()
    got, reference = ssdd_ext.gram(x, kernel=kernel), kernel_matrix(kernel, x.double(), x.double())
    assert relative_error(got, reference) < 1e-6


# --- oracles -----------------------------------------------------------------------------------------

ORACLE = json.loads((Path(__file__).parent / "oracles" / "neural_tangents.json").read_text())


@pytest.mark.parametrize("kernel", [NNGP, NTK])
@pytest.mark.parametrize("row", ORACLE["rows"], ids=lambda row: str(row["network"]))
def test_networks_are_those_of_neural_tangents(row, kernel):
    x, z = (torch.tensor(ORACLE[name], dtype=torch.float64) for name in ("x", "z"))
    for pair, other in (("x, z", z), ("x, x", None)):
        reference = torch.tensor(row[pair][kernel.name], dtype=torch.float64)
        got = ssdd_ext.gram(x, other, kernel=kernel(**row["network"]))
        torch.testing.assert_close(got, reference, rtol=1e-12, atol=0)


def test_an_arc_cosine_kernel_is_the_mean_over_random_features(random):
    x, weights = random(4, 3), random(3, 400_000)
    features = x @ weights
    for order, of in ((0, lambda t: (t > 0).double()), (1, torch.relu)):
        sampled = 2 * of(features) @ of(features).mT / weights.shape[-1]
        torch.testing.assert_close(ssdd_ext.gram(x, kernel=ArcCosine(order)), sampled, rtol=0.02, atol=0.02)


# --- writing kernels ---------------------------------------------------------------------------------


def test_kernels_are_written_as_sums_and_products(random):
    x = random(5, 3)
    rbf, linear = (ssdd_ext.gram(x, kernel=k) for k in (RBF(2.0), Linear(1.0, 0.5)))
    factor = torch.tensor(3.0, dtype=torch.float64)
    for kernel, reference in (
        (RBF(2.0) + Linear(1.0, 0.5), rbf + linear),
        (RBF(2.0) * Linear(1.0, 0.5), rbf * linear),
        (2.0 * RBF(2.0) + Linear(1.0, 0.5) * 3, 2 * rbf + 3 * linear),
        (factor * RBF(2.0) + RBF(2.0) + RBF(2.0), 5 * rbf),
    ):
        torch.testing.assert_close(ssdd_ext.gram(x, kernel=kernel), reference)
    assert 2.0 * Linear(1.5, 0.5) == Linear(3.0, 1.0)  # so it stays native
    assert len((RBF(1.0) + RBF(2.0) + RBF(3.0)).parts) == 3


def test_one_lengthscale_per_feature(random):
    x, y, q, lengths = random(9, 4), random(9, 2), random(5, 4), random(4).exp().requires_grad_()
    kernel, ridge = ARD(Matern(1.0, 1.5), lengths), Ridge.absolute(0.1)
    p = ssdd_ext.krr(x, y, q, kernel=kernel, ridge=ridge)
    reference = ssdd_ext.krr(x / lengths, y, q / lengths, kernel=Matern(1.0, 1.5), ridge=ridge)
    torch.testing.assert_close(p, reference)
    torch.testing.assert_close(ssdd_ext.fit(x, y, kernel=kernel, ridge=ridge).predict(q), reference)
    (got,), (expected,) = (torch.autograd.grad(t.square().sum(), lengths) for t in (p, reference))
    torch.testing.assert_close(got, expected)


BAD = {
    "Matern.nu: expected 0.5, 1.5 or 2.5, got 2": lambda: Matern(1.0, 2),
    "Laplace.norm: expected 1 or 2, got 3": lambda: Laplace(1.0, 3),
    "Polynomial.degree: expected a whole number >= 1, got 0.5": lambda: Polynomial(0.5),
    "ArcCosine.order: expected 0 or 1, got 2": lambda: ArcCosine(2),
    "NTK.depth: expected a whole number >= 0": lambda: NTK(-1),
    "NNGP.w_std: expected a finite number > 0, got 0.0": lambda: NNGP(1, 0.0),
    "ARD.lengthscale: expected a tensor .*got float; .*RBF": lambda: ARD(RBF(1.0), 1.0),
    "ARD.kernel: expected a kernel object": lambda: ARD(1.0, torch.ones(2)),
    "Scaled.factor: expected a finite number > 0": lambda: -2.0 * RBF(1.0),
    r"Sum.parts\[1\]: expected a kernel object": lambda: ssdd_ext.Sum((RBF(1.0), 2.0)),
    "unsupported operand": lambda: RBF(1.0) + 1.0,
    "ARD.lengthscale: expected 3 numbers along the last dimension": lambda: ssdd_ext.gram(
        torch.ones(2, 3), kernel=Scaled(ARD(RBF(1.0), torch.ones(2)), 2.0)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        BAD[message]()


def test_a_hyper_parameter_out_of_range_is_found(random):
    x, y = random(2, 5, 3), random(2, 5, 1)
    bad = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for kernel in (Matern(bad, 1.5), bad * RBF(1.0), RBF(1.0) + RBF(bad), ARD(RBF(1.0), bad[:, None].expand(2, 3))):
        for backend in BACKENDS:
            options = {"kernel": kernel, "ridge": Ridge.absolute(1.0), "backend": backend}
            p, info = ssdd_ext.krr(x, y, x, **options, on_failure="nan", return_info=True)
            assert info.status.tolist() == [0, -1] and p[0].isfinite().all() and p[1].isnan().all()
