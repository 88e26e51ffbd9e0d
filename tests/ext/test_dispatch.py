"""Tensors and modes that only PyTorch's dispatcher resolves.

The fast path of small problems passes raw memory to the core, and must leave such tensors to the dispatcher. Every call
gives the result of plain tensors with the same numbers, or a clear error.
"""

import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ssdd_ext
from ssdd_ext import NTK, RBF, Linear, Matern, Ridge
from ssdd_ext.testing import relative_error

NAMES = ("x_s", "y_s", "x_q", "y_q")
KERNELS = {"linear": Linear(bias=1.0), "rbf": RBF(2.0)}
OPTIONS = {"ridge": Ridge.trace(1e-2)}


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


def inputs(seed=0):
    """Return a small problem, which takes the fast path."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x_s": (6, 5), "y_s": (6, 2), "x_q": (7, 5), "y_q": (7, 2)}
    return {n: torch.randn(*shape, generator=generator) for n, shape in shapes.items()}


def loss_and_gradients(tensors, kernel=KERNELS["linear"]):
    leaves = [tensors["x_s"], tensors["y_s"]]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = ssdd_ext.krr_mse(**tensors, kernel=kernel, **OPTIONS)
    return loss, torch.autograd.grad(loss, leaves)


def expected(kernel=KERNELS["linear"], seed=0):
    return loss_and_gradients(inputs(seed), kernel)


def same(got, reference):
    torch.testing.assert_close(got[0].detach(), reference[0].detach(), rtol=1e-5, atol=1e-6)
    for a, b in zip(got[1], reference[1], strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-4, atol=1e-5)


def negative_view(t):
    """Return the numbers of ``t`` behind PyTorch's negative bit: its memory holds -t."""
    view = torch.complex(torch.zeros_like(t), -t.detach()).conj().imag
    assert view.is_neg() and torch.equal(view, t)
    return view


@pytest.mark.parametrize("which", [*NAMES, "all"])
def test_a_negative_view_is_read_with_its_sign(which, kernel):
    tensors = {n: negative_view(t) if which in (n, "all") else t for n, t in inputs().items()}
    same(loss_and_gradients(tensors, kernel), expected(kernel))
    for n, t in tensors.items():
        assert t.is_neg() == (which in (n, "all")), "the inputs are as they were"


@pytest.mark.parametrize("call", ["krr", "fit", "gram", "cholesky_solve"])
def test_a_negative_view_on_the_ordinary_path(call, kernel):
    plain = inputs()
    negative = {n: negative_view(t) for n, t in plain.items()}

    def run(i):
        if call == "krr":
            return ssdd_ext.krr(i["x_s"], i["y_s"], i["x_q"], kernel=kernel, **OPTIONS)
        if call == "fit":
            return ssdd_ext.fit(i["x_s"], i["y_s"], kernel=kernel, **OPTIONS).predict(i["x_q"])
        if call == "gram":
            return ssdd_ext.gram(i["x_s"], i["x_q"], kernel=kernel)
        return ssdd_ext.cholesky_solve(i["x_s"] @ i["x_s"].mT, i["y_s"], ridge=Ridge.absolute(1.0))

    torch.testing.assert_close(run(negative), run(plain))


class Recording(torch.Tensor):
    """A subclass that sees every function of torch."""

    seen: list[str] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("which", NAMES)
def test_a_subclass_with_torch_function_sees_the_call(which):
    Recording.seen = []
    tensors = inputs()
    tensors[which] = tensors[which].as_subclass(Recording)
    got = loss_and_gradients(tensors)
    assert any("ssdd_ext.krr" in name for name in Recording.seen) and isinstance(got[0], Recording)
    same((got[0].as_subclass(torch.Tensor), [g.as_subclass(torch.Tensor) for g in got[1]]), expected())


class Wrapper(torch.Tensor):
    """A subclass without memory of its own: only its __torch_dispatch__ has the numbers, which are twice ``half``."""

    seen: list[str] = []

    @staticmethod
    def __new__(cls, half):
        return torch.Tensor._make_wrapper_subclass(cls, half.shape, dtype=half.dtype, device=half.device)

    def __init__(self, half):
        self.half = half

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func._schema.name)
        plain = torch.utils._pytree.tree_map_only(Wrapper, lambda w: 2 * w.half, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


@pytest.mark.parametrize("which", ["x_q", "y_q"])
def test_a_subclass_with_torch_dispatch_sees_the_op(which):
    Wrapper.seen = []
    tensors = inputs()
    tensors[which] = Wrapper(tensors[which] / 2)
    leaf = tensors["y_s"].requires_grad_()
    loss = ssdd_ext.krr_mse(**tensors, kernel=KERNELS["linear"], **OPTIONS)
    assert "ssdd_ext::krr" in Wrapper.seen
    torch.testing.assert_close(loss.detach(), expected()[0].detach())
    assert leaf.requires_grad


def test_a_function_mode_sees_the_call():
    class Mode(TorchFunctionMode):
        seen: list[str] = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode() as mode:
        got = loss_and_gradients(inputs())
    assert any("ssdd_ext.krr" in name for name in mode.seen)
    same(got, expected())


def test_a_dispatch_mode_sees_the_op():
    class Mode(TorchDispatchMode):
        seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Mode() as mode:
        got = loss_and_gradients(inputs())
    assert {"ssdd_ext::krr", "ssdd_ext::krr_backward"} <= set(mode.seen)
    same(got, expected())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_device_of_the_user_is_not_that_of_the_inputs(device):
    tensors = inputs()
    reference = expected()
    with torch.device(device):
        got = loss_and_gradients(tensors)
    assert got[0].device.type == "cpu"
    same(got, reference)


def test_the_default_dtype_of_the_user_is_not_that_of_the_inputs():
    torch.set_default_dtype(torch.float64)
    try:
        got = loss_and_gradients(inputs_of_float32 := {n: t.float() for n, t in inputs().items()})
    finally:
        torch.set_default_dtype(torch.float32)
    assert got[0].dtype == torch.float32 and all(g.dtype == torch.float32 for g in got[1])
    plain = {n: t.detach().clone() for n, t in inputs_of_float32.items()}
    same(got, loss_and_gradients(plain))


def test_fake_tensors_stay_fake():
    with FakeTensorMode() as mode:
        tensors = {n: mode.from_tensor(t) for n, t in inputs().items()}
        loss, gradients = loss_and_gradients(tensors)
    outside = {n: mode.from_tensor(t) for n, t in inputs().items()}
    for one in (loss, *gradients, ssdd_ext.krr_mse(**outside, **OPTIONS)):
        assert isinstance(one, FakeTensor)
    assert loss.shape == () and [g.shape for g in gradients] == [(6, 5), (6, 2)]


def test_real_tensors_under_a_fake_mode_are_refused_or_faked():
    tensors = inputs()
    tensors["y_s"].requires_grad_()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(ssdd_ext.krr_mse(**tensors, **OPTIONS), FakeTensor)
    with FakeTensorMode(), pytest.raises(Exception, match="FakeTensor"):
        ssdd_ext.krr_mse(**tensors, **OPTIONS)


def krr_mse_of(x_s, y_s, x_q, y_q):
    return ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, kernel=KERNELS["linear"], **OPTIONS)


def with_gradients(i):
    return [i["x_s"].requires_grad_(), i["y_s"].requires_grad_(), i["x_q"], i["y_q"]]


def test_make_fx_records_the_op_and_not_its_result():
    traced = make_fx(krr_mse_of)(*with_gradients(inputs()))
    other = with_gradients(inputs(1))
    torch.testing.assert_close(traced(*other), krr_mse_of(*other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_records_the_reference_and_not_a_result():
    traced = torch.jit.trace(krr_mse_of, with_gradients(inputs()))
    other = with_gradients(inputs(1))
    torch.testing.assert_close(traced(*other), krr_mse_of(*other))
    with pytest.raises(ValueError, match=r"torch\.jit\.trace cannot record"):
        torch.jit.trace(lambda *i: ssdd_ext.krr_mse(*i, backend="native"), with_gradients(inputs()))


def test_transforms_and_what_is_left_of_them():
    i = inputs()
    reference = expected()
    gradients = torch.func.grad(krr_mse_of, argnums=(0, 1))(*i.values())
    same((reference[0], gradients), reference)
    batch = {n: torch.stack((t, t + 1)) for n, t in i.items()}
    mapped = torch.vmap(krr_mse_of)(*with_gradients(batch))
    torch.testing.assert_close(mapped[0], reference[0])
    with pytest.raises(RuntimeError, match="Functionalize"):  # PyTorch's own limit for any custom gradient
        torch.func.functionalize(krr_mse_of)(*with_gradients(inputs()))

    leaked = []

    def leak(x):
        leaked.append(x)
        return x.sum()

    torch.func.grad(leak)(i["x_q"])
    torch.vmap(leak)(i["x_q"])
    for dead in leaked:  # its transform has ended: PyTorch refuses it or uses the wrapped tensor
        tensors = inputs() | {"x_q": dead}
        tensors["y_s"].requires_grad_()
        try:
            loss = krr_mse_of(**tensors)
        except (RuntimeError, ValueError):
            continue
        torch.testing.assert_close(loss, reference[0])


def test_batched_gradients_of_the_loss():
    """vmap passes a batch of gradients, so the backward must not read its gradient as one number."""
    i = with_gradients(inputs())
    loss = krr_mse_of(*i)
    many = torch.autograd.grad(loss, i[:2], torch.tensor([1.0, 2.0]), is_grads_batched=True)
    for got, one in zip(many, expected()[1], strict=True):
        torch.testing.assert_close(got, torch.stack((one, 2 * one)))


OTHER = {
    "sparse": (lambda t: t.to_sparse(), "expected a dense tensor"),
    "sparse_csr": (lambda t: t.to_sparse_csr(), "expected a dense tensor"),
    "mkldnn": (lambda t: t.to_mkldnn(), "expected a dense tensor"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "expected float32"),
    "nested": (lambda t: torch.nested.nested_tensor([t, t[:3]]), "expected a dense tensor, got a nested one"),
    "jagged": (
        lambda t: torch.nested.nested_tensor([t, t[:3]], layout=torch.jagged),
        "expected a dense tensor, got a nested one",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("kind", OTHER)
def test_what_has_no_matrix_in_memory_is_refused_by_name(kind, which):
    make, message = OTHER[kind]
    tensors = inputs()
    for name in ("x_s", "y_s"):
        if name != which:
            tensors[name].requires_grad_()
    tensors[which] = make(tensors[which])
    with pytest.raises(TypeError, match=f"^{which}: {message}"):
        ssdd_ext.krr_mse(**tensors, **OPTIONS)


@pytest.mark.parametrize("which", NAMES)
def test_zeros_that_are_not_made_yet_are_zeros(which):
    tensors, plain = inputs(), inputs()
    tensors[which], plain[which] = torch._efficientzerotensor(tensors[which].shape), torch.zeros_like(plain[which])
    for i in (tensors, plain):
        i["y_s" if which != "y_s" else "x_s"].requires_grad_()
    got = ssdd_ext.krr_mse(**tensors, kernel=KERNELS["linear"], **OPTIONS)
    torch.testing.assert_close(got, ssdd_ext.krr_mse(**plain, kernel=KERNELS["linear"], **OPTIONS))


@pytest.mark.parametrize("which", NAMES)
def test_a_tensor_whose_memory_was_given_back_is_refused(which):
    tensors = inputs()
    leaf = "y_s" if which != "y_s" else "x_s"
    tensors[leaf].requires_grad_()
    tensors[which].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"^{which}: expected a tensor with memory"):
        ssdd_ext.krr_mse(**tensors, **OPTIONS)


# --- what a loop found on the net does ------------------------------------------------------------------


def call_by_path(name, kernel, backend):
    """A function of x [6, 4], y [6, 2] and q [5, 4] whose backward is looked at."""
    options = {"ridge": Ridge.mean_trace(0.1), "backend": backend}
    of_kernel = {"kernel": kernel, **options}
    labels = torch.tensor([0, 1, 1, 0, 1])

    def gram(x, z=None):
        return ssdd_ext.gram(x, z, kernel=kernel, backend=backend)

    return {
        "krr": lambda x, y, q: ssdd_ext.krr(x, y, q, **of_kernel),
        "fit": lambda x, y, q: ssdd_ext.fit(x, y, **of_kernel).predict(q),
        "std": lambda x, y, q: ssdd_ext.fit(x, y, **of_kernel).predict(q, return_std=True)[1],
        "gram": lambda x, y, q: gram(x, q),
        "cholesky": lambda x, y, q: ssdd_ext.cholesky(gram(x) + torch.eye(6), backend=backend),
        "from_gram": lambda x, y, q: ssdd_ext.krr_from_gram(gram(x), y, gram(q, x), **options),
        "classes": lambda x, y, q: ssdd_ext.krr_cross_entropy(x, y, q, labels, **of_kernel),
        "likelihood": lambda x, y, q: ssdd_ext.log_marginal_likelihood(x, y, **of_kernel),
    }[name]


@pytest.mark.parametrize("kind", ["linear", "rbf", "network", "sum"])
@pytest.mark.parametrize("backend", ["auto", "planned"])
@pytest.mark.parametrize("name", ["krr", "fit", "std", "gram", "cholesky", "from_gram", "classes", "likelihood"])
def test_a_backward_inside_autocast_keeps_its_digits(name, backend, kind, random):
    kernel = KERNELS.get(kind) or {"network": NTK(2), "sum": RBF(2.0) + Linear(0.5)}[kind]
    f = call_by_path(name, kernel, backend)
    data = [random(*shape, dtype=torch.float32, grad=True) for shape in ((6, 4), (6, 2), (5, 4))]

    def gradients(inside):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return torch.autograd.grad(f(*data).sin().sum(), data, allow_unused=True)

    for inside, outside in zip(gradients(True), gradients(False), strict=True):
        if outside is not None:
            assert relative_error(inside, outside) < 1e-5


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_loss_that_is_kept_holds_nothing_and_goes_backward_once(factor, random):
    tensors = [random(*shape, grad=True) for shape in ((6, 4), (6, 2), (5, 4))]
    target, kept = random(5, 2), []
    loss = ssdd_ext.krr_mse(*tensors, target)
    assert loss.grad_fn.bars is not None  # a small problem, whose gradients are there before its backward
    kept = [weakref.ref(bar) for bar in loss.grad_fn.bars]
    (factor * loss).backward()
    for t in tensors:
        t.grad = None
    gc.collect()
    assert [bar() for bar in kept] == [None] * 3
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    loss = ssdd_ext.krr_mse(*tensors, target)
    for _ in range(3):  # a graph that is retained is another thing
        (factor * loss).backward(retain_graph=True)
    for t, expected in zip(tensors, torch.autograd.grad(factor * loss, tensors), strict=True):
        torch.testing.assert_close(t.grad / 3, expected)


@pytest.fixture(params=["float64", "bfloat16", "device"])
def users_defaults(request):
    """What a user's own script may have set before."""
    before = torch.get_default_dtype()
    if request.param == "device":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, request.param))
    yield
    torch.set_default_dtype(before)
    torch.set_default_device(None)


@pytest.mark.parametrize("kind", ["linear", "rbf", "network", "tensors"])
@pytest.mark.parametrize("backend", ["auto", "planned", "torch"])
def test_the_defaults_of_a_user_change_nothing(backend, kind, random, users_defaults):
    kernels = KERNELS | {
        "network": NTK(2),
        "tensors": Matern(torch.full((), 2.0, dtype=torch.float32, device="cpu"), 1.5),
    }
    with torch.device("cpu"):
        x, y, q, t = (random(*s, dtype=torch.float32, grad=True) for s in ((6, 4), (6, 2), (5, 4), (5, 2)))
        v = torch.full((2,), 0.5, dtype=torch.float32)
    options = {"kernel": kernels[kind], "ridge": Ridge.mean_trace(0.1), "backend": backend, "on_failure": "jitter"}
    path = ssdd_ext.krr_path(x, y, ridges=Ridge.absolute(v), kernel=kernels[kind], on_failure="jitter")
    results = [
        ssdd_ext.krr(x, y, q, **options),
        ssdd_ext.krr_mse(x, y, q, t, **options),
        *ssdd_ext.fit(x, y, **options).predict(q, return_std=True),
        ssdd_ext.log_marginal_likelihood(x, y, **options),
        ssdd_ext.krr(x, y, q, **(options | {"ridge": Ridge.per_target(v)} | ({"backend": "auto"}))),
        path.predict(q),
        path.loo(),
    ]
    for result in results:
        assert result.dtype == torch.float32 and result.is_cpu and result.isfinite().all()
        (gradient,) = torch.autograd.grad(result.sum(), x, retain_graph=True)
        assert gradient.dtype == torch.float32 and gradient.is_cpu and gradient.isfinite().all()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.testing.assert_close(results[0], ssdd_ext.krr(x, y, q, **options))
    torch.testing.assert_close(results[1], ssdd_ext.krr_mse(x, y, q, t, **options))
