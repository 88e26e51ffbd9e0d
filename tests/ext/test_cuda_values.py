"""Values of the native core, on the CPU and on a GPU by the same tests.

The formula on every row of the problem table, factors, solves and their gradients, each problem's status, Gram
matrices, and all of these under autocast. Each test also runs without a GPU, as a test that was only ever skipped may
be wrong.
"""

import math
from dataclasses import replace

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge
from ssdd_ext.testing import (
    ARGUMENTS,
    LAYOUTS,
    PLANNED_TABLE,
    TABLE,
    condition,
    draw,
    gradients,
    lay_out,
    mse,
    relative_error,
)

# Kernel functions beside Linear and RBF that the core has on the CPU and on a GPU.
FUNCTIONS = ["laplace", "laplace_1", "matern_3", "matern_5", "rational_quadratic", "polynomial"]
ANGLES = ["arc_cosine_0", "arc_cosine_1", "nngp", "ntk"]
ROWS = [n for n, row in TABLE.items() if row.q > 0]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def move(inputs, layout, device):
    """Return the same problem as leaves on the device, with the same layouts: moving a tensor would make it dense."""
    there = inputs.map(lambda t: t.detach().to(device).requires_grad_(t.requires_grad))
    strided = {n: lay_out(getattr(there, n).detach(), layout).requires_grad_() for n in ARGUMENTS}
    return replace(there, **strided)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROWS)
def test_krr_mse_is_the_formula(name, device):
    inputs = draw(TABLE[name])
    allowed = 1e-9 * max(1.0, condition(inputs) / 1e4)
    reference = mse(inputs)
    there = move(inputs, TABLE[name].layout, device)
    keywords = {"kernel": there.kernel, "ridge": there.ridge, "backend": "native"}
    got = ssdd_ext.krr_mse(*(getattr(there, n) for n in ARGUMENTS), **keywords)
    assert got.device.type == device and relative_error(got.cpu(), reference) <= allowed
    expected, found = gradients(reference, inputs), gradients(got, there)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert relative_error(found[key].cpu(), value) <= allowed, key


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 2e-3), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS + ANGLES)
def test_krr_mse_of_a_kernel_function_is_the_formula(name, dtype, allowed, device):
    inputs = draw(PLANNED_TABLE[f"{name}_batch"], dtype=dtype)
    there = move(inputs, "contiguous", device)
    keywords = {"kernel": there.kernel, "ridge": there.ridge, "backend": "native"}
    got = ssdd_ext.krr_mse(*(getattr(there, n) for n in ARGUMENTS), **keywords)
    wide = inputs.map(lambda t: t.detach().double().requires_grad_(t.requires_grad))
    reference = mse(wide)
    assert got.device.type == device and relative_error(got.cpu(), reference) <= allowed
    expected, found = gradients(reference, wide), gradients(got, there)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert relative_error(found[key].cpu(), value) <= allowed, key


@pytest.mark.parametrize("device", DEVICES)
def test_products_of_halves_are_as_accurate(device, monkeypatch):
    """So many problems take the large tile, which the option is for. It changes nothing on the CPU."""
    generator = torch.Generator().manual_seed(5)
    x, z = (torch.randn(132, n, 48, generator=generator).to(device) for n in (65, 66))
    one = ssdd_ext.gram(x, z, backend="native")
    monkeypatch.setattr(ssdd_ext.plan.gpu, "HALVES", True)
    other = ssdd_ext.gram(x, z, backend="native")
    exact = x.double() @ z.double().mT
    assert relative_error(other, exact) <= min(3e-7, 1.01 * relative_error(one, exact))
    on_a_gpu = device == "cuda" or ssdd_ext.build_info()["instruction_set"] == "host twin"
    assert on_a_gpu != torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [RBF(12.0), ssdd_ext.Matern(12.0, 1.5)], ids=["rbf", "matern_3"])
def test_distances_by_products(kernel, device, monkeypatch):
    """The option changes float32 distances on a GPU within rounding, and nothing on the CPU."""
    generator = torch.Generator().manual_seed(7)
    sizes = ((2, 66, 150), (2, 66, 3), (2, 70, 150), (2, 70, 3))
    x_s, y_s, x_q, y_q = (torch.randn(*size, generator=generator) for size in sizes)
    x_q[0, :9] = x_s[0, :9] + 1e-4 * x_q[0, :9]  # a few pairs of near points, and three clusters far apart
    for x in (x_s, x_q):
        x[1] += 1e3 * torch.randint(0, 3, (len(x[1]), 1), generator=generator)
    points = [x.to(device) for x in (x_s, y_s, x_q, y_q)]

    def results(dtype, backend):
        leaves = [x.to(dtype).requires_grad_() for x in points]
        how = {"kernel": kernel, "ridge": Ridge.mean_trace(1e-1), "backend": backend}
        loss = ssdd_ext.krr_mse(*leaves, **how).sum()
        x, z = leaves[0].detach(), leaves[2].detach()
        k = [ssdd_ext.gram(x, other, kernel=kernel, backend=backend) for other in (None, z)]
        return [*k, loss.detach(), *torch.autograd.grad(loss, leaves)]

    exact, before = results(torch.float64, "torch"), results(torch.float32, "native")
    monkeypatch.setattr(ssdd_ext.plan.gpu, "PRODUCTS", True)
    monkeypatch.setattr(ssdd_ext.plan.gpu, "PRODUCTS_FROM", 1)
    after = results(torch.float32, "native")
    for right, one, other in zip(exact, before, after, strict=True):
        assert relative_error(other, right) <= max(1e-5, 2 * relative_error(one, right))
    for right, other in zip(exact[:2], after, strict=False):
        assert (other - right).abs().max() <= 8 * 2.0**-24
    for right, other in zip(exact, results(torch.float64, "native"), strict=True):
        assert relative_error(other, right) <= 1e-11
    on_a_gpu = device == "cuda" or ssdd_ext.build_info()["instruction_set"] == "host twin"
    assert all(on_a_gpu != torch.equal(before[i], after[i]) for i in (0, 1, 3))
    # Queries in chunks: the backward forms K_qs again, by differences.
    monkeypatch.setattr(ssdd_ext.plan.problem, "K_QS_BYTES", 4 * 66 * 30)
    ssdd_ext.plan._choose.cache_clear()
    try:
        chunks = results(torch.float32, "native")
    finally:
        ssdd_ext.plan._choose.cache_clear()
    for one, other in zip(after, chunks, strict=True):
        assert relative_error(other, one) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_factor_in_one_cluster(device, monkeypatch):
    """The option changes medium float32 factors on a GPU with clusters, within rounding, and nothing elsewhere."""
    a, y = spd(260, (), device)
    generator = torch.Generator().manual_seed(6)
    points = [torch.randn(*size, generator=generator).to(device) for size in ((260, 12), (260, 3), (20, 12), (20, 3))]

    def loss_and_gradient():
        x_s = points[0].clone().requires_grad_()
        loss = ssdd_ext.krr_mse(x_s, *points[1:], kernel=RBF(5.0), ridge=Ridge.trace(1e-4), backend="native")
        return loss.detach(), *torch.autograd.grad(loss, x_s)

    one, before = ssdd_ext.cholesky(a, backend="native"), loss_and_gradient()
    monkeypatch.setattr(ssdd_ext.plan.gpu, "CLUSTER", True)
    after = loss_and_gradient()
    assert all(relative_error(*pair) <= 1e-4 for pair in zip(after, before, strict=True))
    other, x = ssdd_ext.cholesky(a, backend="native"), ssdd_ext.cholesky_solve(a, y, ridge=None, backend="native")
    wide = a.double()
    off, off_before = (relative_error(f.double() @ f.double().mT, wide) for f in (other, one))
    assert off <= 2 * off_before + 1e-7 and other.triu(1).abs().max() == 0
    assert relative_error(x, torch.linalg.solve(wide, y.double())) <= 2e-4
    twin = ssdd_ext.build_info()["instruction_set"] == "host twin"
    has_clusters = twin or (device == "cuda" and torch.cuda.get_device_capability() >= (9, 0))
    assert has_clusters != torch.equal(one, other) and has_clusters != torch.equal(after[1], before[1])


@pytest.mark.parametrize("device", DEVICES)
def test_angles_near_zero_and_pi(device):
    """An angle comes from its cosine, which near 0 and pi has half its digits. kappa_1 keeps all digits there."""
    small = torch.tensor([0.0, 1e-12, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2], dtype=torch.float64)
    angle = torch.cat([small, torch.pi - small]) + math.atan2(0.7, 1.3)
    x = torch.tensor([[1.3, 0.7]], dtype=torch.float64)
    z = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    t = torch.atan2((x[:, :1] * z[:, 1] - x[:, 1:] * z[:, 0]).abs(), x @ z.mT)
    kappa_0, kappa_1 = 1 - t / torch.pi, t.cos() + (t.sin() - t * t.cos()) / torch.pi
    norms = x.norm(dim=-1, keepdim=True) * z.norm(dim=-1)
    for order, reference, allowed in ((0, kappa_0, 1e-8), (1, norms * kappa_1, 3e-15)):
        got = ssdd_ext.gram(x.to(device), z.to(device), kernel=ssdd_ext.ArcCosine(order), backend="native").cpu()
        assert (got - reference).abs().max() <= allowed, order


def spd(n, batch, device, dtype=torch.float32):
    """Return symmetric positive definite matrices of condition about 100, and right-hand sides."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(*batch, n, n + 8, generator=generator, dtype=torch.float64)
    a = x @ x.mT / n + 0.04 * torch.eye(n, dtype=torch.float64)
    return a.to(device, dtype), torch.randn(*batch, n, 5, generator=generator, dtype=torch.float64).to(device, dtype)


# Every kind of factorisation in float: a warp, a block, tiles; in double a block holds less.
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 2e-4), (torch.float64, 1e-11)], ids=str)
@pytest.mark.parametrize(
    "batch, n", [((), 1), ((7,), 10), ((3,), 32), ((2, 2), 33), ((2,), 150), ((), 236), ((2,), 300)]
)
def test_factor_solve_and_their_gradients(batch, n, dtype, allowed, device):
    """Compare cholesky and cholesky_solve, with all gradients, to torch in double."""
    a, y = (t.requires_grad_() for t in spd(n, batch, device, dtype))
    wide = [t.detach().double().requires_grad_() for t in (a, y)]
    value = torch.tensor(1e-2, device=device, dtype=dtype, requires_grad=True)
    exact_value = value.detach().double().requires_grad_()
    solved = ssdd_ext.cholesky_solve(a, y, ridge=Ridge.mean_trace(value), backend="native")
    got = [ssdd_ext.cholesky(a, backend="native"), solved]
    amount = exact_value * wide[0].diagonal(dim1=-2, dim2=-1).mean(-1)
    shifted = wide[0] + amount[..., None, None] * torch.eye(n, device=device)
    reference = [torch.linalg.cholesky(wide[0]), torch.cholesky_solve(wide[1], torch.linalg.cholesky(shifted))]
    assert got[0].triu(1).abs().max() == 0
    generator = torch.Generator().manual_seed(2)
    for g, w, leaves in zip(got, reference, ((0,), (0, 1, 2)), strict=True):
        assert relative_error(g, w) <= allowed
        bar = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(device)
        found = torch.autograd.grad(g, [(a, y, value)[i] for i in leaves], bar.to(dtype))
        expected = list(torch.autograd.grad(w, [(*wide, exact_value)[i] for i in leaves], bar))
        expected[0] = (expected[0] + expected[0].mT) / 2  # of the symmetric matrix
        for f, e in zip(found, expected, strict=True):
            assert relative_error(f, e) <= 10 * allowed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [10, 100, 300])
def test_each_problem_of_a_batch_has_its_own_status(n, device):
    """A good matrix, a nearly singular one, an indefinite one and one with NaN in one batch."""
    a, y = spd(n, (4,), device)
    a[1] -= (torch.linalg.eigvalsh(a[1].double())[0] + 1e-7).float() * torch.eye(n, device=device)
    a[2, n // 2, n // 2] = -5.0
    a[3, n - 1, 0] = a[3, 0, n - 1] = float("nan")
    x, info = ssdd_ext.cholesky_solve(a, y, on_failure="jitter", return_info=True, backend="native")
    status, jitter = info.status.tolist(), info.jitter.tolist()
    assert status[:2] == [0, 0] and status[2] == n // 2 + 1 and status[3] > 0, status
    assert jitter[0] == 0 and jitter[2] > 0
    assert torch.isfinite(x[:2]).all() and torch.isnan(x[2:]).all()
    _, info = ssdd_ext.cholesky_solve(a, y, on_failure="nan", return_info=True, backend="native")
    assert info.status[0] == 0 and info.status[2] == n // 2 + 1 and not info.jitter.any()
    with pytest.raises(ssdd_ext.FactorizationError, match=f"pivot {n // 2 + 1} of {n}"):
        ssdd_ext.cholesky_solve(a[2], y[2], backend="native")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize("kernel", [Linear(0.7, 0.5), RBF(90.0)])
def test_gram_in_float(kernel, layout, device):
    """Symmetric and not, with small k and with k large enough to be split. A point with itself gives exactly 1 under
    the RBF."""
    generator = torch.Generator().manual_seed(7)
    for s, q, d in ((70, 33, 20), (65, 129, 300), (10, 30, 8193)):
        x, z = (lay_out(torch.randn(2, n, d, generator=generator).to(device), layout) for n in (s, q))
        for other in (None, z):
            got = ssdd_ext.gram(x, other, kernel=kernel, backend="native")
            reference = ssdd_ext.gram(x.double(), None if other is None else z.double(), kernel=kernel, backend="torch")
            assert relative_error(got, reference) <= 3e-6
            if other is None:
                assert torch.equal(got, got.mT)
                assert isinstance(kernel, Linear) or (got.diagonal(dim1=-2, dim2=-1) == 1).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["krr_st", "krr_st_tall", "past_block_linear", "large_rbf", "batch_5_rbf"])
def test_every_output_of_an_op_is_a_function_of_its_inputs(name, device):
    """Outputs that only the backward reads, or that are not read, must be written too."""
    inputs = move(draw(TABLE[name], dtype=torch.float32), "contiguous", device)
    tensors = [getattr(inputs, n).detach() for n in ARGUMENTS]
    a = torch.eye(70, device=device).expand(2, 70, 70)
    values = [*inputs.kernel.parameters, inputs.ridge.value]
    for needs in ([True] * 3 + [False], [False] * 4):
        results = []
        for filling in (float("nan"), 1.0):
            for size in (1 << 20, 1 << 12, 1 << 8):  # the allocator reuses this memory
                torch.full((size,), filling, device=device)
            kind = inputs.kernel.name, inputs.ridge.kind, False, "nan"
            got = torch.ops.ssdd_ext.krr(*tensors, None, values, *kind, needs)
            results.append([*got, *torch.ops.ssdd_ext.solve(a, a, None, [], "", False, "nan", True)])
        for i, (one, other) in enumerate(zip(*results, strict=True)):
            assert torch.equal(one, other), i


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["trace_linear", "mean_trace_rbf", "tall_linear", "scalar_rbf"])
def test_gradients_to_hyper_parameters_in_float(name, device):
    row = TABLE[f"hyper_{name}"]
    inputs = draw(row, dtype=torch.float32)
    exact, there = inputs.to(torch.float64), move(inputs, row.layout, device)
    reference = mse(exact)
    keywords = {"kernel": there.kernel, "ridge": there.ridge, "backend": "native"}
    got = ssdd_ext.krr_mse(*(getattr(there, n) for n in ARGUMENTS), **keywords)
    assert got.dtype == torch.float32 and relative_error(got.cpu(), reference) <= 1e-4
    expected, found = gradients(reference, exact), gradients(got, there)
    assert len(expected) >= 6 and expected.keys() == found.keys()
    for key, value in expected.items():
        assert relative_error(found[key].cpu(), value) <= 1e-3, key


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kernel", [Linear(1.0, 1.0), RBF(20.0)], ids=["linear", "rbf"])
def test_half_features_are_their_float_values(kernel, half, device):
    """Results are in float32, as for the converted features; gradients have each input's type."""
    generator = torch.Generator().manual_seed(3)
    for s, d, layouts in ((20, 512, LAYOUTS[:2]), (100, 513, LAYOUTS[1::-1]), (300, 64, LAYOUTS[:1] * 2)):
        drawn = [torch.randn(*size, generator=generator).to(device) for size in ((s, d), (s, 10), (70, d), (70, 10))]
        narrow = [t.to(half if i in (0, 2) else torch.float32).requires_grad_() for i, t in enumerate(drawn)]
        wide = [t.detach().float().requires_grad_() for t in narrow]
        keywords = {"kernel": kernel, "ridge": Ridge.trace(1e-2), "on_failure": "nan", "backend": "native"}
        got, reference = ssdd_ext.krr_mse(*narrow, **keywords), ssdd_ext.krr_mse(*wide, **keywords)
        assert got.dtype == torch.float32 and relative_error(got, reference) <= 1e-4
        # Scaled as a loss in float16 training is: gradients to one element of a mean are below float16's range.
        found, expected = (torch.autograd.grad(4096 * r, t) for r, t in ((got, narrow), (reference, wide)))
        for g, w, t in zip(found, expected, narrow, strict=True):
            one_rounding = torch.finfo(half).eps if t.dtype == half else 0.0
            assert g.dtype == t.dtype and relative_error(g.float(), w) <= one_rounding + 1e-3
        xs, zs = ([lay_out(t[2 * i].detach(), layouts[i]) for t in (narrow, wide)] for i in (0, 1))
        for k in (ssdd_ext.gram(x, z, kernel=kernel, backend="native") for x in xs for z in zs):
            assert k.dtype == torch.float32
            assert relative_error(k, ssdd_ext.gram(wide[0], wide[2], kernel=kernel, backend="native")) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["no_query_linear", "no_query_rbf"])
def test_no_query_in_float(name, device):
    """Nothing is predicted, and every gradient is zero instead of uninitialised memory."""
    there = move(draw(TABLE[name], dtype=torch.float32), TABLE[name].layout, device)
    got = ssdd_ext.krr(there.x_s, there.y_s, there.x_q, kernel=there.kernel, ridge=there.ridge, backend="native")
    assert got.shape[-2] == 0
    for gradient in torch.autograd.grad(got.sum(), [there.x_s, there.y_s, there.x_q]):
        assert not gradient.any()


CALLS = {
    "gram": lambda x_s, y_s, x_q, y_q, **k: ssdd_ext.gram(x_q, x_s, **k),
    "krr": lambda x_s, y_s, x_q, y_q, **k: ssdd_ext.krr(x_s, y_s, x_q, **k),
    "krr_mse": ssdd_ext.krr_mse,
    "fit": lambda x_s, y_s, x_q, y_q, **k: ssdd_ext.fit(x_s, y_s, **k).predict(x_q),
    "fit, primal": lambda x_s, y_s, x_q, y_q, **k: ssdd_ext.fit(x_s[:, :9], y_s, **k).predict(x_q[:, :9]),
    "from_gram": lambda x_s, y_s, x_q, y_q, **k: ssdd_ext.krr_from_gram(
        ssdd_ext.gram(x_s), y_s, ssdd_ext.gram(x_q, x_s), **k
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("name", CALLS)
def test_autocast_rounds_nothing(name, backend, device):
    """float32 inputs give float32's digits: torch's products are not computed in 16 bits."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(*size, generator=generator).to(device) for size in ((40, 60), (40, 5), (30, 60), (30, 5))]
    reference = CALLS[name](*inputs, backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = CALLS[name](*inputs, backend=backend)
    assert got.dtype == torch.float32 and relative_error(got, reference) <= 1e-5
