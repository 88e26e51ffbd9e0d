"""Kernel functions on the native core: which run there, gradients for every ridge, chunks, float32, transforms."""

import dataclasses
import math

import pytest
import torch

import ssdd_ext
from ssdd_ext import (
    ARD,
    NNGP,
    NTK,
    RBF,
    ArcCosine,
    Cosine,
    Laplace,
    Linear,
    Matern,
    Polynomial,
    RationalQuadratic,
    Ridge,
)
from ssdd_ext.testing import PLANNED_KERNELS, PLANNED_TABLE, draw, gradients, mse, relative_error

NATIVE = list(PLANNED_KERNELS)
# Those with a form of their own in the core, or another kernel's after a change of the features or of the ridge.
SINGLE = [name for name in NATIVE if name not in ("sum", "product", "nested")]
RIDGES = (Ridge.mean_trace(0.05), Ridge.trace(0.05, detach=True))


def backend_of(kernel):
    x = torch.zeros(5, 9)
    return ssdd_ext.explain(x, x[:, :2], x, kernel=kernel, ridge=Ridge.absolute(1.0)).partition(" ")[0]


def test_which_kernels_are_native():
    assert {backend_of(kernel) for kernel in PLANNED_KERNELS.values()} == {"native"}
    assert [backend_of(k) for k in (NNGP(16), NTK(17), NTK(17) + RBF(1.0))] == ["native", "planned", "planned"]
    meta = torch.zeros(5, 9, device="meta")
    assert ssdd_ext.explain(meta, meta[:, :2], meta, kernel=Matern(1.0, 1.5)).startswith("planned")


@pytest.mark.parametrize("ridge", RIDGES, ids=lambda r: r.kind)
@pytest.mark.parametrize("name", NATIVE)
def test_gradients_through_the_trace(name, ridge):
    """Kernels of x.z have a diagonal that depends on the points, and so has their trace."""
    i = draw(dataclasses.replace(PLANNED_TABLE[f"{name}_batch"], ridge=ridge))
    for hyper in (i.kernel, i.kernel.map(lambda p: p.detach())):
        inputs = dataclasses.replace(i, kernel=hyper)
        loss = ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, kernel=hyper, ridge=i.ridge, backend="native")
        reference = mse(inputs)
        assert relative_error(loss, reference) < 1e-11
        found, expected = gradients(loss, inputs), gradients(reference, inputs)
        for leaf, gradient in expected.items():
            # A factor scales K_ss and lambda alike, unless the trace is detached: its gradient is 0.
            size = gradient.norm() if "factor" not in leaf or ridge.detach else torch.ones(())
            assert (found[leaf] - gradient).norm() <= 1e-9 * size, leaf


@pytest.mark.parametrize("name", SINGLE)
def test_queries_in_chunks(name, monkeypatch):
    """The arguments of the kernel function are not kept: the backward forms them again."""
    i = draw(PLANNED_TABLE[f"{name}_scalar"])
    how = {"kernel": i.kernel, "ridge": i.ridge, "on_failure": "nan", "return_info": True, "backend": "native"}
    kept = gradients(ssdd_ext.krr(i.x_s, i.y_s, i.x_q, **how)[0], i)
    from ssdd_ext import plan
    from ssdd_ext.plan import problem

    monkeypatch.setattr(problem, "K_QS_BYTES", 5 * 8 * i.x_s.shape[-2])
    plan._choose.cache_clear()
    try:
        found = gradients(ssdd_ext.krr(i.x_s, i.y_s, i.x_q, **how)[0], i)
    finally:
        plan._choose.cache_clear()
    for leaf, gradient in kept.items():
        assert relative_error(found[leaf], gradient) < 1e-12, leaf


# --- float32 -----------------------------------------------------------------------------------------


def kernels(d):
    length = math.sqrt(d)
    return {
        "rbf": RBF(length),
        "laplace": Laplace(length),
        "laplace_1": Laplace(float(d), norm=1),
        "matern_3": Matern(length, 1.5),
        "matern_5": Matern(length, 2.5),
        "rational_quadratic": RationalQuadratic(length, 0.7),
        "polynomial": Polynomial(3, 1 / d, 0.5),
        "cosine": Cosine(),
        "arc_cosine_0": ArcCosine(0),
        "arc_cosine_1": ArcCosine(1),
        "nngp": NNGP(2, 1.4, 0.3),
        "ntk": NTK(3, 1.4, 0.3),
    }


def points(kind, rows, d, generator):
    x = torch.randn(rows, d, generator=generator)
    cluster = torch.randint(0, 3, (rows, 1), generator=generator)
    if kind == "far clusters":
        return x + 1e3 * cluster
    return 1e-2 * x + 3 * cluster + 1 if kind == "tight clusters" else x


@pytest.mark.parametrize("name", kernels(1))
def test_float32_is_as_accurate_as_plain_pytorch(name):
    """Points near each other, in clusters far apart, in tight clusters, and of many features."""
    for kind, d in (("spread", 9), ("far clusters", 9), ("tight clusters", 9), ("spread", 8192)):
        errors = {"native": [], "torch": []}
        for seed in range(2 if d == 9 else 1):
            generator = torch.Generator().manual_seed(seed)
            rows = ((40, d), (40, 3), (30, d))
            drawn = [points(kind if c == d else "spread", r, c, generator) for r, c in rows]
            weight = torch.randn(30, 3, generator=generator)

            def results(dtype, backend, drawn=drawn, weight=weight, d=d):
                leaves = [x.to(dtype).requires_grad_() for x in drawn]
                how = {"kernel": kernels(d)[name], "ridge": Ridge.mean_trace(0.1), "backend": backend}
                p = ssdd_ext.krr(*leaves, **how)
                return [p, *torch.autograd.grad((p * weight.to(dtype)).sum(), leaves)]

            exact = results(torch.float64, "planned")
            for backend, own in errors.items():
                found = results(torch.float32, backend)
                own.append([relative_error(a, b) for a, b in zip(found, exact, strict=True)])
        for ours, plain in zip(zip(*errors["native"], strict=True), zip(*errors["torch"], strict=True), strict=True):
            # A condition number of 40 / 0.1 allows 400 roundings, whose sum is smaller or larger by chance.
            assert max(ours) <= max(3 * max(plain), 400 * 2.0**-24 * (3 if kind != "spread" else 0.25)), (kind, d)


# --- other forms, transforms -------------------------------------------------------------------------


def test_a_factor_becomes_part_of_the_ridge(random):
    x, y, q = random(9, 4, grad=True), random(9, 2), random(5, 4)
    factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    for ridge in (Ridge.absolute(0.3), *RIDGES):
        found, reference = (
            ssdd_ext.krr(x, y, q, kernel=factor * Matern(1.5, 2.5), ridge=ridge, backend=b) for b in ("native", "torch")
        )
        torch.testing.assert_close(found, reference)
        for a, b in zip(*(torch.autograd.grad(p.square().sum(), (x, factor)) for p in (found, reference)), strict=True):
            torch.testing.assert_close(a, b)


def test_a_lengthscale_out_of_range_is_a_bad_parameter(random):
    x, y = random(2, 5, 3), random(2, 5, 1)
    lengths = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    for kernel in (ARD(Cosine(), lengths), ARD(ArcCosine(1), lengths), ARD(Linear(), lengths)):
        how = {"kernel": kernel, "ridge": Ridge.absolute(1.0), "on_failure": "nan", "return_info": True}
        p, info = ssdd_ext.krr(x, y, x, **how, backend="native")
        assert info.status.tolist() == [0, -1] and p[0].isfinite().all() and p[1].isnan().all()


@pytest.mark.parametrize("name", ["matern_5", "polynomial", "ntk", "ard", "sum"])
def test_transforms_and_second_derivatives(name, random):
    kernel, ridge = PLANNED_KERNELS[name], Ridge.absolute(0.3)
    x, y, q = random(2, 5, 9), random(2, 5, 2), random(2, 4, 9)

    def loss(x, y, q):
        return ssdd_ext.krr(x, y, q, kernel=kernel, ridge=ridge, backend="native").square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(x, y, q)
    leaves = [x[0].clone().requires_grad_(), y[0], q[0]]
    (first,) = torch.autograd.grad(loss(*leaves), leaves[0], create_graph=True)
    assert relative_error(mapped[0], first) < 1e-12
    (second,) = torch.autograd.grad(first.square().sum(), leaves[0])
    reference = torch.autograd.functional.hessian(
        lambda x: ssdd_ext.krr(x, y[0], q[0], kernel=kernel, ridge=ridge, backend="torch").square().sum(), x[0]
    )
    assert relative_error(second, 2 * torch.einsum("ijkl,kl->ij", reference, first.detach())) < 1e-9
