"""Planned PyTorch beyond the shared tables: each order of its products, which calls run it, and what it must never
do."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import ssdd_ext
from ssdd_ext import NNGP, NTK, RBF, ArcCosine, FactorizationError, Kernel, Laplace, Linear, Ridge, plan
from ssdd_ext.api import call
from ssdd_ext.ops import planned_gram
from ssdd_ext.ops.planned import is_primal
from ssdd_ext.ops.planned_solve import PANEL
from ssdd_ext.plan import planned as orders
from ssdd_ext.testing import Inputs, Problem, draw, gradients, mse, relative_error

KERNELS = {"linear": Linear(1.5, 0.5), "rbf": RBF(4.0)}


@dataclass(frozen=True)
class Square(Kernel):
    """(x.z + bias)^2, a kernel without native code."""

    bias: float | torch.Tensor = 1.0
    name: ClassVar[str] = "square"

    @property
    def parameters(self):
        return (self.bias,)

    def evaluate(self, x, z, *parameters):
        return (x @ z.mT + parameters[0]).square()

    def valid(self, *parameters):
        return parameters[0] >= 0


def krr_mse(i, **keywords):
    return ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, kernel=i.kernel, ridge=i.ridge, **keywords)


def agree(got, reference, inputs, limit=1e-9):
    assert relative_error(got, reference) < limit
    expected, found = gradients(reference, inputs), gradients(got, inputs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) < limit, name


@pytest.mark.parametrize("predict, pull_back", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_every_order_of_the_products_is_the_formula(predict, pull_back, batch, monkeypatch):
    monkeypatch.setattr(orders, "predicts_low_rank", lambda *sizes: predict)
    monkeypatch.setattr(orders, "pulls_back_low_rank", lambda *sizes: pull_back)
    row = Problem("orders", 20, 30, 50, 4, Linear(1.5, 0.5), Ridge.mean_trace(1e-2, detach=True), batch, hyper="scalar")
    inputs = draw(row)
    agree(krr_mse(inputs, backend="planned"), mse(inputs), inputs)


@pytest.mark.parametrize("sizes", [(600, 50, 700, 3), (900, 50, 530, 3)], ids=["dual", "primal"])
def test_a_gram_matrix_in_panels_is_the_formula(sizes):
    assert min(sizes[0], sizes[2]) >= 2 * PANEL
    inputs = draw(Problem("panels", *sizes, Linear(bias=1.0), Ridge.trace(1e-2)), requires_grad=("x_s", "y_s"))
    agree(krr_mse(inputs, backend="planned"), mse(inputs), inputs)


@pytest.mark.parametrize("size", [(), (2,)], ids=["one", "per problem"])
def test_gradients_of_the_primal(size):
    """Also to the scale and the ridge. A bias that is a tensor would make the fit dual."""
    inputs = draw(Problem("primal", 30, 12, 7, 3, Linear(1.5, 0.5), Ridge.mean_trace(1e-2), batch=(2,)))
    scale, ridge = (torch.full(size, value, dtype=torch.float64, requires_grad=True) for value in (1.5, 1e-2))
    inputs = Inputs(*inputs.leaves().values(), Linear(scale, 0.5), Ridge.mean_trace(ridge))
    assert is_primal(inputs.x_s, inputs.y_s, inputs.kernel) and len(inputs.leaves()) == 6
    agree(krr_mse(inputs, backend="planned"), mse(inputs), inputs)


def test_the_orders_follow_the_shape():
    assert orders.predicts_low_rank(1000, 1024, 8192, 10) and orders.pulls_back_low_rank(1000, 8192, 10)
    assert not orders.predicts_low_rank(1000, 1024, 8192, 900) and not orders.pulls_back_low_rank(1000, 8192, 900)


# --- which calls run it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hyper", ["numbers", "scalar", "batch"])
@pytest.mark.parametrize("name", ["krr", "fit"])
def test_a_kernel_without_native_code_runs_planned(name, hyper):
    row = Problem("own", 9, 7, 5, 3, Square(0.5), Ridge.mean_trace(1e-2), batch=(2,), hyper=hyper)
    inputs = draw(row)
    assert "planned PyTorch" in ssdd_ext.explain(inputs.x_s, inputs.y_s, inputs.x_q, kernel=inputs.kernel)

    def predicted(backend):
        options = {"kernel": inputs.kernel, "ridge": inputs.ridge, "backend": backend}
        if name == "krr":
            return ssdd_ext.krr(inputs.x_s, inputs.y_s, inputs.x_q, **options)
        return ssdd_ext.fit(inputs.x_s, inputs.y_s, **options).predict(inputs.x_q)

    agree(predicted("auto"), predicted("torch"), inputs)
    with pytest.raises(ValueError, match="'native' cannot run krr here: it has no native epilogue for Square"):
        ssdd_ext.krr(inputs.x_s, inputs.y_s, inputs.x_q, kernel=inputs.kernel, backend="native")


@pytest.mark.parametrize("base", [Kernel, RBF])
def test_an_own_kernel_with_the_name_of_another_is_refused(base):
    with pytest.raises(TypeError, match="kernel .*Other: expected a name of its own, got name = 'rbf'"):
        type("Other", (base,), {"name": "rbf", "__module__": "mine"})
    with pytest.raises(TypeError, match="expected a name of its own"):
        type("Other", (RBF,), {"__module__": "mine"})


def test_another_device_runs_planned():
    x, y = torch.empty(6, 4, device="meta"), torch.empty(6, 2, device="meta")
    assert "planned PyTorch (it runs on cpu and cuda tensors, not on meta)" in ssdd_ext.explain(x, y, x)
    assert ssdd_ext.krr(x, y, x, on_failure="nan").shape == (6, 2)


def test_forward_mode_of_such_a_kernel_runs_the_reference(random):
    x, y = random(5, 3), random(5, 2)

    def f(x, backend="auto"):
        return ssdd_ext.krr(x, y, x, kernel=Square(), ridge=Ridge.absolute(0.5), backend=backend, on_failure="nan")

    direction = torch.ones_like(x)
    got = torch.func.jvp(f, (x,), (direction,))[1]
    assert relative_error(got, torch.func.jvp(lambda x: f(x, "torch"), (x,), (direction,))[1]) < 1e-12
    with pytest.raises(ValueError, match="no forward mode; use .*backend='torch'"):
        torch.func.jvp(lambda x: f(x, "planned"), (x,), (direction,))


def test_sizes_measured_to_be_faster_on_a_gpu_run_planned(monkeypatch):
    """The table is data: a row sends its sizes and all larger ones to planned PyTorch, on a GPU only."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(call.ops, "unavailable", lambda device, kernel: None)
    monkeypatch.setattr(plan.gpu, "PLANNED_IS_FASTER", ((100, 1024, 4096, 512, 1),))

    def backend(device, *sizes, **more):
        return call.pick_backend("auto", device, Linear(), plan.Problem(*sizes, **more))[0]

    assert backend(cuda, 100, 1024, 4096, 512) == backend(cuda, 1000, 1024, 8192, 512) == "planned"
    assert backend(cuda, 99, 1024, 4096, 512) == backend(cuda, 100, 1024, 4096, 512, batch=2) == "native"
    assert backend(cuda, 100, 1024, 4096, 512, itemsize=8) == "native"
    assert backend(cuda, 5000, 1024, 4096, 512) == "native"  # the primal
    assert backend(torch.device("cpu"), 100, 1024, 4096, 512) == "native"
    monkeypatch.setattr(plan.gpu, "PLANNED_IS_FASTER", ())
    assert backend(cuda, 1000, 1024, 8192, 512) == "native"


def test_kernels_of_an_angle_run_planned_for_many_features_per_angle(monkeypatch):
    monkeypatch.setattr(call.ops, "unavailable", lambda device, kernel: None)
    for kernel, angles in ((NTK(3), 3), (ArcCosine(0), 1), (RBF(1.0) + NNGP(2), 2), (NNGP(0), 1), (Linear(), 0)):
        assert call.ops.angle_layers(kernel) == angles, kernel
        most = plan.gpu.FEATURES_PER_ANGLE * angles or 10**6
        for features, backend in ((most, "native"), (most + 1, "planned" if angles else "native")):
            sizes = plan.Problem(100, 100, features, 5, kernel.linear, angles=angles)
            picked, why = call.pick_backend("auto", torch.device("cuda", 0), kernel, sizes)
            assert picked == backend and ("float64" in why) == (picked == "planned"), (kernel, features)


# --- what it must never do -----------------------------------------------------------------------------


@pytest.mark.parametrize("on_failure", ["nan", "jitter"])
@pytest.mark.parametrize("hyper", ["numbers", "batch"])
@pytest.mark.parametrize("kernel", [*KERNELS.values(), Square(0.5)], ids=lambda k: k.name)
def test_no_number_is_read_on_the_host(kernel, hyper, on_failure):
    """Fake tensors have shapes and no numbers, so every read of a number raises."""
    row = Problem("fake", 9, 7, 20, 3, kernel, Ridge.mean_trace(1e-2), batch=(2,), hyper=hyper)
    real = draw(row, dtype=torch.float32)
    with FakeTensorMode():
        inputs = real.map(lambda t: torch.empty(t.shape, requires_grad=t.requires_grad))
        loss, info = krr_mse(inputs, backend="planned", on_failure=on_failure, return_info=True)
        assert loss.shape == info.status.shape == info.jitter.shape == (2,)
        leaves = list(inputs.leaves().values())
        assert [g.shape for g in torch.autograd.grad(loss.sum(), leaves)] == [t.shape for t in leaves]


@pytest.mark.parametrize("kernel", [*KERNELS.values(), Square(0.5)], ids=lambda k: k.name)
def test_autocast_does_not_round_the_products(kernel):
    inputs = draw(Problem("autocast", 9, 7, 20, 3, kernel, Ridge.mean_trace(1e-2)), dtype=torch.float32)
    reference = krr_mse(inputs, backend="planned")
    expected = gradients(reference, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = krr_mse(inputs, backend="planned")
    assert torch.equal(got, reference)
    assert all(torch.equal(found, expected[name]) for name, found in gradients(got, inputs).items())


def test_one_factorisation_for_both_passes(monkeypatch):
    """A second one would be the most expensive part of the call."""
    count = []
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: count.append(a.shape) or factor(a))
    for kernel, order in ((Linear(bias=1.0), 9), (RBF(4.0), 9), (Linear(bias=1.0), 5)):
        d = 20 if order == 9 else 4
        inputs = draw(Problem("once", 9, 7, d, 3, kernel, Ridge.trace(1e-2)))
        count.clear()
        gradients(krr_mse(inputs, backend="planned"), inputs)
        assert count == [(order, order)]


# --- torch's own machinery --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kernel, sizes",
    [(Linear(1.5, 0.5), (3, 2, 5, 2)), (Linear(1.5, 0.5), (5, 2, 2, 2)), (RBF(4.0), (3, 2, 2, 2))],
    ids=["dual", "primal", "rbf"],
)
def test_double_backward(kernel, sizes):
    inputs = draw(Problem("twice", *sizes, kernel, Ridge.mean_trace(0.1)))
    leaves = (inputs.x_s, inputs.y_s, inputs.x_q, inputs.y_q)

    def loss(*tensors):
        i = Inputs(*tensors, inputs.kernel, inputs.ridge)
        return krr_mse(i, backend="planned", on_failure="nan")

    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize(
    "kernel, sizes, hyper",
    [
        (Linear(1.5, 0.5), (12, 9, 17, 3), "batch"),
        (Linear(1.5, 0.5), (12, 9, 7, 3), "numbers"),
        (RBF(4.0), (12, 9, 7, 3), "batch"),
        (Square(0.5), (12, 9, 7, 3), "numbers"),
    ],
    ids=["dual", "primal", "rbf", "polynomial"],
)
def test_one_graph(kernel, sizes, hyper):
    row = Problem("compiled", *sizes, kernel, Ridge.trace(1e-2), batch=(2,), hyper=hyper)
    inputs = draw(row)
    leaves = inputs.leaves()

    def loss(*tensors):
        own = {n: t for n, t in zip(leaves, tensors, strict=True) if n not in ("x_s", "y_s", "x_q", "y_q", "ridge")}
        made = type(kernel)(**own) if own else kernel
        ridge = Ridge.trace(tensors[-1]) if hyper != "numbers" else row.ridge
        return krr_mse(Inputs(*tensors[:4], made, ridge), backend="planned", on_failure="nan")

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    agree(compiled(*leaves.values()), krr_mse(inputs, backend="planned"), inputs, 1e-11)


@pytest.mark.parametrize("far", [1.0, 1e2, 1e4])
def test_clusters_far_apart_keep_their_digits(far, random):
    """Float32 points about three centres: distances within a cluster are small compared with those between clusters."""
    x_s, x_q = (random(n, 4) + far * torch.arange(3).repeat(n)[:n, None] for n in (30, 20))
    tensors = [t.float().requires_grad_() for t in (x_s, random(30, 2), x_q, random(20, 2))]
    inputs = Inputs(*tensors, RBF(1.0), Ridge.mean_trace(1e-2))
    exact = inputs.to(torch.float64)
    got, reference = krr_mse(inputs, backend="planned"), mse(exact)
    assert relative_error(got, reference) < 1e-5
    expected = gradients(reference, exact)
    for name, gradient in gradients(got, inputs).items():
        assert relative_error(gradient, expected[name]) < 1e-5, name


def test_a_failure_is_raised_by_name():
    x, y = torch.ones(4, 2), torch.ones(4, 1)
    with pytest.raises(FactorizationError, match="krr: the matrix of the problem is not positive definite: pivot 2"):
        ssdd_ext.krr(x, y, x, kernel=RBF(1.0), ridge=Ridge.absolute(0.0), backend="planned")


def test_a_failed_problem_is_nan_and_its_neighbour_is_not(random):
    """This holds even if the status is not read."""
    for kernel in (*KERNELS.values(), Square(0.5)):
        x = random(2, 6, 9)
        x[1, 3] = float("nan")
        x.requires_grad_()
        y, q = random(2, 6, 2, grad=True), random(2, 4, 9)
        p = ssdd_ext.krr(x, y, q, kernel=kernel, ridge=Ridge.absolute(0.5), on_failure="nan", backend="planned")
        assert p[1].isnan().all() and p[0].isfinite().all()
        for gradient in torch.autograd.grad(p.sum(), (x, y)):
            assert gradient[1].isnan().all() and gradient[0].isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_compiled_function_serves_many_shapes(kernel, random):
    """Symbolic sizes: one graph per combination of orders, not one per shape."""
    counter = CompileCounterWithBackend("aot_eager")

    def loss(x_s, y_s, x_q):
        p = ssdd_ext.krr(x_s, y_s, x_q, kernel=KERNELS[kernel], backend="planned", on_failure="nan")
        return p.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for s, q, d, c in ((12, 9, 17, 3), (9, 12, 30, 4), (11, 8, 13, 2)):
        tensors = random(s, d, grad=True), random(s, c, grad=True), random(q, d, grad=True)
        assert relative_error(compiled(*tensors), loss(*tensors)) < 1e-12
    assert counter.frame_count <= 2


@pytest.mark.parametrize("itself", [True, False], ids=["K_ss", "K_qs"])
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=str)
def test_one_norms_by_cdist_in_blocks_are_the_formula(needs, itself, monkeypatch):
    monkeypatch.setattr(planned_gram, "_ROWS", 4)
    calls, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *a, **k: calls.append(a) or cdist(*a, **k))
    points = [
        torch.randn(2, n, 5, dtype=torch.float64, requires_grad=needed) for n, needed in zip((9, 6), needs, strict=True)
    ]
    x, z = points[0], None if itself else points[1]
    leaves = [t for t in (x, z) if t is not None and t.requires_grad]
    bar = torch.randn(2, 9, 9 if itself else 6, dtype=torch.float64)
    kernel = Laplace(3.0, norm=1)
    found, expected = planned_gram.gram(x, z, kernel), ssdd_ext.reference.gram(x, z, kernel)
    assert calls and relative_error(found, expected) < 1e-14
    if not leaves:
        return
    got, exact = (torch.autograd.grad(k, leaves, bar, create_graph=True) for k in (found, expected))
    assert all(t.requires_grad for t in got), "a gradient to differentiate again"
    once = torch.autograd.grad(planned_gram.gram(x, z, kernel), leaves, bar)
    assert len(calls) > 2, "the gradient was not computed in blocks"
    for first, again, want in zip(once, got, exact, strict=True):
        assert max(relative_error(first, want), relative_error(again, want)) < 1e-14
    second, formula = (torch.autograd.grad(sum(t.square().sum() for t in g), leaves) for g in (got, exact))
    assert all(relative_error(a, b) < 1e-13 for a, b in zip(second, formula, strict=True))
