"""The native core on a GPU: values and gradients over the problem table, graphs, streams, no synchronisation."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge, ops
from ssdd_ext.ops.native import core
from ssdd_ext.testing import TABLE, condition, draw, gradients, mse, relative_error


def on_gpu(inputs):
    """The same leaves on the GPU, and the call's arguments there."""
    leaf = {n: getattr(inputs, n).detach().cuda().requires_grad_(True) for n in ("x_s", "y_s", "x_q", "y_q")}
    return leaf


PLAIN = [n for n, row in TABLE.items() if row.q > 0 and row.hyper == "numbers"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PLAIN)
def test_krr_mse_is_the_formula_on_the_gpu(name):
    inputs = draw(TABLE[name])
    allowed = 1e-9 * max(1.0, condition(inputs) / 1e4)
    want = mse(inputs)
    expected = gradients(want, inputs)
    leaf = on_gpu(inputs)
    got = ssdd_ext.krr_mse(**leaf, kernel=inputs.kernel, ridge=inputs.ridge, backend="native")
    assert relative_error(got.cpu(), want) <= allowed
    got.sum().backward()
    for key, value in expected.items():
        if key in leaf:
            assert relative_error(leaf[key].grad.cpu(), value) <= allowed, key


def problem(device="cuda", dtype=torch.float32, s=100, q=256, d=512, c=10, batch=()):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return normal(s, d).requires_grad_(True), normal(s, c).requires_grad_(True), normal(q, d), normal(q, c)


@pytest.mark.gpu
@pytest.mark.parametrize("s", [10, 32, 33, 100, 300, 1000])
@pytest.mark.parametrize("kernel", [Linear(bias=1.0), RBF(20.0)])
def test_every_rung_in_float_against_double(s, kernel):
    ridge = Ridge.trace(1e-3)
    x_s, y_s, x_q, y_q = problem(s=s)
    ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, kernel=kernel, ridge=ridge, backend="native").backward()
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in (x_s, y_s, x_q, y_q)]
    ssdd_ext.krr_mse(*exact, kernel=kernel, ridge=ridge, backend="torch").backward()
    assert relative_error(x_s.grad, exact[0].grad) <= 1e-3
    assert relative_error(y_s.grad, exact[1].grad) <= 1e-3


@pytest.mark.gpu
def test_same_bits_on_any_stream_and_in_a_graph():
    x_s, y_s, x_q, y_q = (t.detach() for t in problem(s=300))

    def call():
        return ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, kernel=Linear(1.0), ridge=Ridge.trace(1e-4), on_failure="nan")

    want = call()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        assert torch.equal(call(), want)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    graph.replay()
    assert torch.equal(got, want)


@pytest.mark.gpu
def test_nothing_synchronises():
    x_s, y_s, x_q, y_q = problem(batch=(4,))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, kernel=Linear(1.0), ridge=Ridge.trace(1e-4), on_failure="jitter")
        loss.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_without_a_gpu_the_core_says_what_is_missing():
    if torch.cuda.is_available():
        assert core.cuda_problem(0) == ""
        return
    problem_here = core.cuda_problem(0)
    if ssdd_ext.build_info()["cuda"]:
        assert "CUDA" in problem_here and "driver" in problem_here
    else:
        assert "this build has no CUDA kernels" in problem_here
    assert ops.unavailable(torch.device("cuda", 0), Linear()) == problem_here
