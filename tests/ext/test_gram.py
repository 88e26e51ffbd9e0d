"""gram: the kernel functions, their gradients, and guaranteed exactness."""

import dataclasses

import pytest
import torch

import ssdd_ext
from ssdd_ext import ARD, RBF, Linear, Ridge
from ssdd_ext.testing import BOTH, LAYOUTS, TABLE, draw, gradients, kernel_matrix, relative_error

KERNELS = {"linear": Linear(1.5, 0.5), "linear_plain": Linear(), "rbf": RBF(3.0)}


@pytest.mark.parametrize("name", TABLE)
def test_gram_is_the_formula(name, backend):
    inputs = draw(TABLE[name])
    kernel, x_s, x_q = inputs.kernel, inputs.x_s, inputs.x_q
    for got, reference in (
        (ssdd_ext.gram(x_s, kernel=kernel, backend=backend), kernel_matrix(kernel, x_s, x_s)),
        (ssdd_ext.gram(x_q, x_s, kernel=kernel, backend=backend), kernel_matrix(kernel, x_q, x_s)),
    ):
        # Hyper-parameters may add batch dimensions to the result that the features do not have.
        reference = reference.expand(got.shape)
        assert relative_error(got, reference) < 1e-13
        expected, found = gradients(reference, inputs), gradients(got, inputs)
        assert found.keys() == expected.keys()
        for leaf, gradient in expected.items():
            if leaf not in ("x_s", "x_q") or float(gradient.detach().abs().sum()) > 0:
                assert relative_error(found[leaf], gradient) < 1e-11, leaf


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (33, 17), (130, 65), (2, 3, 19, 8)], ids=str)
def test_a_gram_matrix_is_symmetric(shape, dtype, kernel, backend, random):
    k = ssdd_ext.gram(random(*shape, dtype=dtype), kernel=kernel, backend=backend)
    if backend == "native":  # one triangle, mirrored
        assert torch.equal(k, k.mT)
    assert relative_error(k, k.mT) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1e3], ids=["centred", "far"])
def test_rbf_diagonal_is_exactly_one(offset, dtype, backend, random):
    x = (random(37, 29) + offset).to(dtype)
    diagonal = ssdd_ext.gram(x, kernel=RBF(0.5), backend=backend).diagonal()
    assert torch.equal(diagonal, torch.ones_like(diagonal))


def test_rbf_distances_do_not_cancel(backend, random):
    """For points 1e-3 apart, 1e3 from the origin, |x|^2 + |z|^2 - 2 x.z would have no correct digit in float32."""
    x = (1e3 + 1e-3 * random(20, 6)).float().requires_grad_()
    kernel, exact = RBF(2e-3), x.detach().double().requires_grad_()
    k, reference = ssdd_ext.gram(x, kernel=kernel, backend=backend), kernel_matrix(kernel, exact, exact)
    assert relative_error(k, reference) < 1e-6
    weight = random(20, 20)
    (gradient,) = torch.autograd.grad((k * weight.float()).sum(), x)
    (expected,) = torch.autograd.grad((reference * weight).sum(), exact)
    assert relative_error(gradient, expected) < 1e-5


def test_rbf_underflows_to_zero_not_to_nan(backend):
    x = torch.tensor([[0.0], [1e20]], requires_grad=True)
    k = ssdd_ext.gram(x, kernel=RBF(1.0), backend=backend)
    assert torch.equal(k, torch.eye(2))
    (gradient,) = torch.autograd.grad(k.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_z_beside_x_and_x_itself_agree(kernel, backend, random):
    x = random(21, 13, grad=True)
    alone = ssdd_ext.gram(x, kernel=kernel, backend=backend)
    beside = ssdd_ext.gram(x, x, kernel=kernel, backend=backend)
    assert relative_error(beside, alone) < 1e-14
    weight = random(21, 21)
    a, b = (torch.autograd.grad((k * weight).sum(), x)[0] for k in (alone, beside))
    assert relative_error(a, b) < 1e-13


@pytest.mark.parametrize("layout_z", LAYOUTS)
@pytest.mark.parametrize("layout_x", LAYOUTS)
@pytest.mark.parametrize("kernel", BOTH.values(), ids=BOTH)
def test_layouts_side_by_side(kernel, layout_x, layout_z, backend):
    row = ssdd_ext.testing.Problem("layouts", 7, 5, 6, 2, kernel, batch=(3,))
    x = draw(dataclasses.replace(row, layout=layout_x)).x_s
    z = draw(dataclasses.replace(row, layout=layout_z)).x_q
    got = ssdd_ext.gram(x, z, kernel=kernel, backend=backend)
    assert relative_error(got, kernel_matrix(kernel, x, z)) < 1e-14


def test_no_features(backend):
    """D = 0 is the empty sum: the bias alone, or distance 0."""
    x, z = torch.zeros(3, 0), torch.zeros(2, 0)
    assert torch.equal(ssdd_ext.gram(x, z, kernel=Linear(1.0, 0.5), backend=backend), torch.full((3, 2), 0.5))
    assert torch.equal(ssdd_ext.gram(x, z, kernel=RBF(1.0), backend=backend), torch.ones(3, 2))


def test_no_points(backend):
    empty, x = torch.zeros(2, 0, 4), torch.zeros(3, 4, requires_grad=True)
    assert ssdd_ext.gram(empty, backend=backend).shape == (2, 0, 0)
    k = ssdd_ext.gram(empty, x, backend=backend)
    assert k.shape == (2, 0, 3)
    (gradient,) = torch.autograd.grad(k.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_solve_dtype_float64_accumulates_in_float64(backend, random):
    """In a dot product that cancels, float32 accumulation leaves an error of the size of the addends."""
    x = torch.cat([torch.full((1, 500), 1e4), random(1, 24).abs(), torch.full((1, 500), 1e4)], 1).float()
    z = torch.cat([torch.full((1, 500), 1e4), torch.ones(1, 24), torch.full((1, 500), -1e4)], 1).float()
    got = ssdd_ext.gram(x, z, backend=backend, solve_dtype=torch.float64)
    assert got.dtype == torch.float32
    assert relative_error(got, x.double() @ z.double().mT) < 1e-6


def test_objects_that_hold_tensors_compare_and_hash_without_reading_them():
    """Also a batch of values, or those of a device to which reading would be a synchronisation."""
    one, other = torch.ones(3), torch.ones(3)
    makers = (RBF, lambda v: 2.0 * RBF(v) + Linear(v), Ridge.absolute, Ridge.noise, lambda v: ARD(RBF(1.0), v))
    for make in makers:
        assert make(one) == make(one) and hash(make(one)) == hash(make(one))
        assert make(one) != make(other) and make(one) != "rbf"
        assert len({make(one), make(one), make(other)}) == 2
    assert RBF(1.0) != RBF(one) and 2.0 * RBF(1.0) == 2 * RBF(1) and RBF(1.0) + RBF(2.0) != RBF(2.0) + RBF(1.0)
    fitted = ssdd_ext.fit(torch.eye(3), torch.ones(3, 1))
    assert fitted == fitted and fitted != ssdd_ext.fit(torch.eye(3), torch.ones(3, 1)) and {fitted: 1}[fitted] == 1


def test_kernels_are_immutable_values():
    assert Linear(2.0) == Linear(2) and Linear(2.0) != Linear(3.0)
    assert hash(RBF(1.0)) == hash(RBF(1.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        RBF(1.0).lengthscale = 2.0
