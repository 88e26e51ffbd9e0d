"""The native core on a GPU: the problem table, graphs, streams, devices, compiled, autocast, no synchronisation."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge, ops, plan
from ssdd_ext.ops import hyper, native
from ssdd_ext.ops.native import core
from ssdd_ext.testing import relative_error


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

    expected = call()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        assert torch.equal(call(), expected)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    graph.replay()
    assert torch.equal(got, expected)


@pytest.mark.gpu
def test_a_training_step_in_a_graph_replays_with_new_data():
    """Forward, backward and update are captured once. Each replay equals the eager step on the inputs' new values."""
    x_s, y_s, x_q, y_q = problem(s=300)

    def step():
        loss = ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, kernel=Linear(bias=1.0), on_failure="jitter")
        return loss.detach(), *torch.autograd.grad(loss, (x_s, y_s))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (5, 6):
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in (x_s, y_s, x_q, y_q):
                tensor.normal_()
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.gpu
def test_raise_is_refused_under_capture():
    x_s, y_s, x_q, _ = (t.detach() for t in problem())
    with pytest.raises(RuntimeError, match="on_failure='raise'"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        ssdd_ext.krr(x_s, y_s, x_q, ridge=Ridge.trace(1e-3), on_failure="raise")
    torch.cuda.synchronize()  # the device still works after the refusal
    assert torch.isfinite(ssdd_ext.krr(x_s, y_s, x_q, ridge=Ridge.trace(1e-3))).all()


@pytest.mark.gpu
@pytest.mark.parametrize("s", [20, 100, 500])
def test_a_replay_says_which_problem_failed(s):
    x_s, y_s, x_q, y_q = (t.detach() for t in problem(s=s))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        p, info = ssdd_ext.krr(x_s, y_s, x_q, ridge=Ridge.trace(1e-3), on_failure="nan", return_info=True)
    graph.replay()
    assert int(info.status) == 0 and torch.isfinite(p).all()
    with torch.no_grad():
        x_s[1] = float("nan")
    graph.replay()
    assert int(info.status) != 0 and torch.isnan(p).all()


@pytest.mark.gpu
@pytest.mark.parametrize("s", [20, 100, 500])
def test_work_on_a_side_stream_waits_for_that_stream_only(s):
    """Inputs that are written late on the same side stream are seen. The memory of a freed workspace is not reused
    too early."""
    x_s, y_s, x_q, y_q = (t.detach() for t in problem(s=s))
    expected = ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, ridge=Ridge.trace(1e-3), on_failure="nan")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.zeros_like(x_s)
        torch.cuda._sleep(20_000_000)
        late.copy_(x_s)
        got = [ssdd_ext.krr_mse(late, y_s, x_q, y_q, ridge=Ridge.trace(1e-3), on_failure="nan") for _ in range(3)]
    for _ in range(3):  # the caching allocator of the default stream is busy meanwhile
        torch.full((1 << 22,), float("nan"), device="cuda")
    torch.cuda.current_stream().wait_stream(side)
    assert all(torch.equal(g, expected) for g in got)


@pytest.mark.gpu
def test_every_device_index():
    """The kernels run on the inputs' device, whichever device is current, and the current device stays the same."""
    expected = ssdd_ext.krr_mse(*problem("cuda:0"), ridge=Ridge.trace(1e-3), on_failure="nan").cpu()
    for index in range(torch.cuda.device_count()):
        for current in range(torch.cuda.device_count()):
            with torch.cuda.device(current):
                inputs = problem(f"cuda:{index}")
                loss = ssdd_ext.krr_mse(*inputs, ridge=Ridge.trace(1e-3), on_failure="nan")
                loss.backward()
                assert torch.cuda.current_device() == current
                assert loss.device.index == index and inputs[0].grad.device.index == index
                same = torch.cuda.get_device_name(index) == torch.cuda.get_device_name(0)
                assert torch.equal(loss.cpu(), expected) or not same


ONLY_THE_LAST = """
import torch, ssdd_ext
device = torch.device("cuda", torch.cuda.device_count() - 1)
x = torch.ones(5, 3, device=device, requires_grad=True)
ssdd_ext.krr_mse(x, x[:, :2], x, x[:, :2], backend="native", on_failure="nan").backward()
print([torch._C._cuda_hasPrimaryContext(i) for i in range(torch.cuda.device_count())])
"""


@pytest.mark.gpu
def test_no_context_is_made_on_an_unused_device():
    done = subprocess.run([sys.executable, "-P", "-c", ONLY_THE_LAST], capture_output=True, text=True)
    count = torch.cuda.device_count()
    assert done.stdout.strip() == str([i == count - 1 for i in range(count)]), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_is_eager(mode):
    x_s, y_s, x_q, y_q = problem()

    def step(x_s, y_s, x_q, y_q):
        features = torch.tanh(x_s)
        keywords = {"kernel": Linear(1.0, 1.0), "ridge": Ridge.trace(1e-3), "on_failure": "nan"}
        return ssdd_ext.krr_mse(features, y_s, x_q, y_q, **keywords)

    compiled = torch.compile(step, mode=mode, fullgraph=True)
    expected = torch.autograd.grad(step(x_s, y_s, x_q, y_q), (x_s, y_s))
    for _ in range(4):  # warm-up, capture, replays
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        loss = compiled(x_s, y_s, x_q, y_q)
        got = torch.autograd.grad(loss, (x_s, y_s))
        assert relative_error(loss.detach().clone(), step(x_s, y_s, x_q, y_q)) <= 1e-5
        for g, w in zip(got, expected, strict=True):
            assert relative_error(g.clone(), w) <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(half):
    """A network gives features of 16 bits, and targets are float32 parameters; gradients reach both."""
    x_s, y_s, x_q, y_q = problem()
    network = torch.nn.Linear(512, 96, device="cuda")
    keywords = {"kernel": Linear(1.0, 1.0), "ridge": Ridge.trace(1e-2), "on_failure": "nan"}
    with torch.autocast("cuda", dtype=half):
        f_s, f_q = network(x_s), network(x_q)
        assert f_s.dtype == half
        loss = ssdd_ext.krr_mse(f_s, y_s, f_q, y_q, **keywords)
    assert loss.dtype == torch.float32
    loss.backward()
    again = ssdd_ext.krr_mse(f_s.detach().float(), y_s.detach(), f_q.detach().float(), y_q, **keywords)
    assert relative_error(loss, again) <= 1e-4
    assert x_s.grad.dtype == y_s.grad.dtype == torch.float32
    assert torch.isfinite(x_s.grad).all() and network.weight.grad.norm() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("batch, s, d", [((10_000,), 10, 16), ((10_000,), 40, 64), ((1,), 220, 64), ((3,), 1000, 64)])
def test_batches_of_one_and_of_ten_thousand(batch, s, d):
    x_s, y_s, x_q, y_q = problem(s=s, q=8, d=d, c=3, batch=batch)
    for kernel in (Linear(1.0, 1.0), RBF(8.0)):
        keywords = {"kernel": kernel, "ridge": Ridge.trace(1e-2), "on_failure": "nan"}
        got = ssdd_ext.krr(x_s, y_s, x_q, backend="native", **keywords)
        expected = ssdd_ext.krr(x_s.double(), y_s.double(), x_q.double(), backend="torch", **keywords)
        assert relative_error(got, expected) <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [True, False])
def test_fused_gram_and_apart(fused, monkeypatch):
    """Both ways to K_ss are tested, whatever the plan would pick."""
    choose = plan.choose
    monkeypatch.setattr(plan, "choose", lambda *a: replace(choose(*a), fused_gram=fused))
    for s, d in ((10, 40), (64, 100), (200, 300)):
        x_s, y_s, x_q, _ = problem(s=s, d=d, batch=(5,))
        for kernel in (Linear(1.0, 1.0), RBF(20.0)):
            keywords = {"kernel": kernel, "ridge": Ridge.trace(1e-2), "on_failure": "jitter"}
            got = ssdd_ext.krr(x_s, y_s, x_q, backend="native", **keywords)
            expected = ssdd_ext.krr(x_s.double(), y_s.double(), x_q.double(), backend="torch", **keywords)
            assert relative_error(got, expected) <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("s", [10, 100, 300, 1000])
@pytest.mark.parametrize("on_failure", ["nan", "jitter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_synchronises(s, on_failure, dtype):
    x_s, y_s, x_q, y_q = problem(batch=(4,), s=s)
    x_s = x_s.detach().to(dtype).requires_grad_()
    inputs = x_s, y_s, x_q.to(dtype), y_q
    for kernel in (Linear(1.0, 1.0), RBF(20.0)):
        ssdd_ext.krr_mse(
            *inputs, kernel=kernel, on_failure=on_failure
        )  # queries that happen once per device have happened
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = ssdd_ext.krr_mse(*inputs, kernel=kernel, ridge=Ridge.trace(1e-3), on_failure=on_failure)
            loss.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_scalar_on_the_cpu_does_not_synchronise():
    inputs = problem()
    kernel, ridge = RBF(torch.tensor(20.0)), Ridge.trace(torch.tensor(1e-3))
    expected = ssdd_ext.krr_mse(*inputs, kernel=RBF(20.0), ridge=Ridge.trace(1e-3), on_failure="nan")
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = ssdd_ext.krr_mse(*inputs, kernel=kernel, ridge=ridge, on_failure="nan")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert relative_error(got, expected) <= 1e-5
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="while a CUDA graph is captured"), torch.cuda.graph(graph):
        ssdd_ext.krr_mse(*inputs, kernel=RBF(torch.tensor(20.0, requires_grad=True)), on_failure="nan")


def test_a_scalar_on_the_cpu_is_a_number_if_nothing_traces_it():
    x, scale = torch.empty(4, 3, device="meta"), torch.tensor(2.0)

    def values(kernel):
        return hyper.pack(kernel, Ridge.trace(1e-3), x.shape[:-2], torch.float32, x.device)

    assert values(RBF(scale)) == (None, [2.0, 1e-3]) == values(RBF(torch.nn.Parameter(scale, requires_grad=False)))
    assert values(RBF(scale.clone().requires_grad_()))[0].device.type == "meta"
    seen = []
    torch.vmap(lambda s: seen.append(values(RBF(s))[0]) or s)(torch.tensor([1.0, 2.0]))
    assert seen[0] is not None


@pytest.mark.gpu
def test_workspaces_come_from_torchs_allocator():
    """After a warm-up the driver allocates nothing, and all memory is returned to the allocator."""
    inputs = problem(s=500)

    def call():
        loss = ssdd_ext.krr_mse(*inputs, ridge=Ridge.trace(1e-3), on_failure="jitter")
        torch.autograd.grad(loss, inputs[:2])

    for _ in range(3):  # the allocator's splits of blocks become stable
        call()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    segments = torch.cuda.memory_stats()["segment.all.allocated"]
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["segment.all.allocated"] == segments
    assert torch.cuda.memory_allocated() == held


@pytest.mark.gpu
def test_explain_names_the_gpu():
    text = ssdd_ext.explain(*problem()[:3])
    assert torch.cuda.get_device_name() in text and "microseconds" in text and "K_ss" in text


KRR = ([1.0, 1.0, 1e-3], "linear", "trace", False, "nan", [True, True, True, False])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_features_go_through_the_ops_as_they_are(half):
    """The inputs of the GPU's kernels: shapes and types, checked without a GPU."""
    with FakeTensorMode():
        x_s, x_q = (torch.empty(n, 16, dtype=half, requires_grad=True) for n in (12, 9))
        y_s, y_q = torch.empty(12, 4, requires_grad=True), torch.empty(9, 4)
        results = torch.ops.ssdd_ext.krr(x_s, y_s, x_q, y_q, None, *KRR)
        assert {t.dtype for t in results} == {torch.float32, torch.int32}
        bars = torch.autograd.grad(results[1], (x_s, y_s, x_q))
        assert [b.dtype for b in bars] == [half, torch.float32, half]
        assert [b.shape for b in bars] == [x_s.shape, y_s.shape, x_q.shape]
        k = torch.ops.ssdd_ext.gram(x_s, x_q, None, [1.0, 0.0], "linear")
        assert k.dtype == torch.float32
        assert [b.dtype for b in torch.autograd.grad(k.sum(), (x_s, x_q))] == [half, half]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_graph_is_made_of_cuda_tensors(dtype, monkeypatch):
    """torch.compile traces the whole call on fake CUDA tensors, without a GPU. This includes the question whether
    the core can run, which it cannot trace."""
    monkeypatch.setattr(native, "_cuda_problem", lambda index: core.cuda_problem(index)[:0])

    def step(x_s, y_s, x_q, y_q):
        keywords = {"kernel": Linear(1.0, 1.0), "ridge": Ridge.trace(1e-3), "on_failure": "nan", "backend": "native"}
        return ssdd_ext.krr_mse(2 * x_s, y_s, x_q, y_q, **keywords)

    torch._dynamo.reset()
    with FakeTensorMode():
        x_s, x_q = (torch.empty(n, 16, device="cuda:0", dtype=dtype) for n in (12, 9))
        y_s, y_q = torch.empty(12, 4, device="cuda:0"), torch.empty(9, 4, device="cuda:0")
        loss = torch.compile(step, backend="aot_eager", fullgraph=True)(x_s, y_s, x_q, y_q)
        assert loss.device == x_s.device and loss.dtype == torch.float32 and loss.shape == ()


def test_the_answer_of_the_core_is_marked_as_torch_marks_it():
    """ops/native.py sets the mark itself, since torch's function imports the compiler."""

    def marked():
        pass

    torch.compiler.assume_constant_result(marked)
    assert vars(native._problem_on) == vars(marked) and vars(marked)


def test_half_features_on_the_cpu_are_refused_by_the_core():
    x = torch.zeros(4, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="expected 32- or 64-bit features on the CPU"):
        torch.ops.ssdd_ext.krr(x, torch.zeros(4, 2), x, None, None, *KRR)


def test_without_a_gpu_the_core_says_what_is_missing():
    if torch.cuda.is_available():
        assert core.cuda_problem(0) == ""
        return
    problem_here = core.cuda_problem(0)
    if ssdd_ext.build_info()["cuda"]:
        assert "CUDA" in problem_here and "driver" in problem_here
    else:
        assert "this build has no CUDA kernels" in problem_here
    for kernel in (Linear(), ssdd_ext.Laplace(1.0, norm=1)):  # every kernel that the core has on the CPU
        assert ops.unavailable(torch.device("cuda", 0), kernel) == problem_here
