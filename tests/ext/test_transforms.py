"""gradcheck, torch.func, torch.compile, double backward: the calls inside PyTorch's own machinery."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

import ssdd_ext
from ssdd_ext import RBF, FactorizationError, Linear, Ridge, plan
from ssdd_ext.testing import relative_error

SCALE, BIAS, LENGTH, RIDGE = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.3, 0.4, 1.7, 0.2))
KERNELS = {"linear": (lambda s, b, _: Linear(s, b)), "rbf": (lambda _s, _b, length: RBF(length))}
RIDGES = {
    "absolute": Ridge.absolute,
    "trace": Ridge.trace,
    "trace_attached": lambda v: Ridge.trace(v, detach=False),
    "mean_trace": Ridge.mean_trace,
}


def spd(random, *batch, order=4):
    x = random(*batch, order, order)
    return (x @ x.mT + torch.eye(order, dtype=torch.float64)).requires_grad_()


def symmetric(a):
    """Return a symmetric matrix: gradcheck moves one number at a time, and the calls take symmetric matrices."""
    return (a + a.mT) / 2


def problem(random, *batch, s=4, q=3, d=3, c=2, dtype=torch.float64):
    shapes = ((s, d), (s, c), (q, d), (q, c))
    return [random(*batch, *shape, dtype=dtype, grad=True) for shape in shapes]


# --- gradcheck ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_gradcheck_gram(kernel, batch, backend, random):
    x, z = random(*batch, 4, 3, grad=True), random(*batch, 3, 3, grad=True)

    def f(x, z, *hyper):
        return ssdd_ext.gram(x, z, kernel=KERNELS[kernel](*hyper), backend=backend)

    hyper = (SCALE, BIAS, LENGTH)
    assert torch.autograd.gradcheck(f, (x, z, *hyper))
    assert torch.autograd.gradcheck(lambda x, *h: f(x, None, *h), (x, *hyper))


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_gradcheck_cholesky(batch, backend, random):
    a = spd(random, *batch)
    assert torch.autograd.gradcheck(lambda a: ssdd_ext.cholesky(symmetric(a), backend=backend), (a,))


@pytest.mark.parametrize("ridge", [*RIDGES, None])
def test_gradcheck_cholesky_solve(ridge, backend, random):
    def f(a, y, v):
        chosen = None if ridge is None else RIDGES[ridge](v)
        return ssdd_ext.cholesky_solve(symmetric(a), y, ridge=chosen, backend=backend)

    a, y = spd(random, 2), random(2, 4, 2, grad=True)
    if ridge == "trace":  # the detached trace is a constant for the gradient and not for finite differences
        a = a.detach()
    assert torch.autograd.gradcheck(f, (a, y, RIDGE))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("call", ["krr", "krr_mse", "fit"])
@pytest.mark.parametrize("sizes", [{}, {"s": 6, "d": 2}], ids=["wide", "tall"])
def test_gradcheck_krr(call, ridge, kernel, sizes, backend, random):
    x_s, y_s, x_q, y_q = problem(random, 2, **sizes)
    hyper = [SCALE, BIAS, LENGTH]
    if ridge == "trace":
        x_s, hyper = x_s.detach(), [h.detach() for h in hyper]

    def f(x_s, y_s, x_q, y_q, scale, bias, length, v):
        options = {"kernel": KERNELS[kernel](scale, bias, length), "ridge": RIDGES[ridge](v), "backend": backend}
        if call == "fit":
            return ssdd_ext.fit(x_s, y_s, **options).predict(x_q)
        if call == "krr":
            return ssdd_ext.krr(x_s, y_s, x_q, **options)
        return ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, **options)

    # Along random directions: one call each, in place of two for every number of every argument.
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(f, (x_s, y_s, x_q, y_q, *hyper, RIDGE), fast_mode=True)


@pytest.mark.parametrize("ridge", [r for r in RIDGES if r != "trace"])
def test_gradcheck_from_gram(ridge, backend, random):
    k_ss, y_s, k_qs, y_q = spd(random, 2), random(2, 4, 2, grad=True), random(2, 3, 4, grad=True), random(2, 3, 2)

    def f(k_ss, y_s, k_qs, y_q, v):
        options = {"ridge": RIDGES[ridge](v), "backend": backend}
        k_ss = symmetric(k_ss)
        return (
            ssdd_ext.krr_from_gram(k_ss, y_s, k_qs, **options),
            ssdd_ext.krr_mse_from_gram(k_ss, y_s, k_qs, y_q, **options),
        )

    assert torch.autograd.gradcheck(f, (k_ss, y_s, k_qs, y_q.requires_grad_(), RIDGE))


# --- torch.func -----------------------------------------------------------------------------------------


def loss_of(backend, kernel, on_failure="nan"):
    def loss(x_s, y_s, x_q, y_q):
        options = {"kernel": kernel, "ridge": Ridge.mean_trace(0.1), "backend": backend, "on_failure": on_failure}
        return ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, **options)

    return loss


TWO = {"linear": Linear(1.3, 0.4), "rbf": RBF(1.7)}


@pytest.mark.parametrize("kernel", TWO.values(), ids=TWO)
def test_vmap_is_the_batch(kernel, backend, random):
    loss = loss_of(backend, kernel)
    x_s, y_s, x_q, y_q = problem(random, 3)
    batched = loss(x_s, y_s, x_q, y_q)
    assert relative_error(vmap(loss)(x_s, y_s, x_q, y_q), batched) < 1e-13
    some = vmap(loss, in_dims=(0, None, 1, None))(x_s, y_s[0], x_q.transpose(0, 1), y_q[0])
    assert relative_error(some, loss(x_s, y_s[:1], x_q, y_q[:1])) < 1e-13
    twice = vmap(vmap(loss, in_dims=(None, 0, None, 0)), in_dims=(0, None, 0, None))(x_s, y_s, x_q, y_q)
    assert relative_error(twice, loss(x_s[:, None], y_s, x_q[:, None], y_q)) < 1e-13


@pytest.mark.parametrize("kernel", TWO.values(), ids=TWO)
def test_grad_and_vmap_of_grad(kernel, backend, random):
    loss = loss_of(backend, kernel)
    arguments = problem(random, 3)
    expected = torch.autograd.grad(loss(*arguments).sum(), arguments)
    plain = [t.detach() for t in arguments]
    each = [grad(loss, argnums=(0, 1, 2, 3))(*(t[i] for t in plain)) for i in range(3)]
    mapped = vmap(grad(loss, argnums=(0, 1, 2, 3)))(*plain)
    for k, reference in enumerate(expected):
        assert relative_error(torch.stack([e[k] for e in each]), reference) < 1e-12
        assert relative_error(mapped[k], reference) < 1e-12


def test_vmap_over_hyper_parameters(backend, random):
    x_s, y_s, x_q, y_q = (t.detach() for t in problem(random))
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(scale):
        options = {"kernel": Linear(scale), "ridge": Ridge.absolute(0.1), "backend": backend, "on_failure": "nan"}
        return ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, **options)

    assert relative_error(vmap(loss)(scales), torch.stack([loss(s) for s in scales])) < 1e-13
    assert relative_error(vmap(grad(loss))(scales), torch.stack([grad(loss)(s) for s in scales])) < 1e-12


@pytest.mark.parametrize("call", ["gram", "cholesky", "cholesky_solve"])
def test_vmap_of_the_smaller_calls(call, backend, random):
    x, y = random(3, 4, 5), random(3, 4, 2)
    options = {"backend": backend}
    if call == "gram":
        arguments, f = (x,), lambda x: ssdd_ext.gram(x, kernel=RBF(2.0), **options)
    elif call == "cholesky":
        arguments, f = (spd(random, 3).detach(),), lambda a: ssdd_ext.cholesky(a, on_failure="nan", **options)
    else:
        arguments = (spd(random, 3).detach(), y)
        f = lambda a, y: ssdd_ext.cholesky_solve(a, y, on_failure="nan", **options)  # noqa: E731
    assert relative_error(vmap(f)(*arguments), f(*arguments)) < 1e-13


@pytest.mark.parametrize("call", ["krr", "krr_mse", "cholesky_solve", "fit"])
def test_transforms_inside_each_other(call, backend, random):
    """Ops return stand-ins of shape (0,) for outputs that are not computed. They have no batch dimension to map
    over."""
    x, y, q = random(3, 4, 3), random(3, 4, 2), random(3, 5, 3)
    options = {"backend": backend, "on_failure": "nan"}

    def f(x, y, q):
        if call == "krr":
            return ssdd_ext.krr(x, y, q, **options)
        if call == "krr_mse":
            return ssdd_ext.krr_mse(x, y, q, q[:, :2], **options)
        if call == "fit":
            return ssdd_ext.fit(x, y, **options).predict(q)
        return ssdd_ext.cholesky_solve(x @ x.mT + torch.eye(4, dtype=x.dtype), y, **options)

    each = torch.stack([f(*one) for one in zip(x, y, q, strict=True)])
    twice = vmap(vmap(f))(*(torch.stack((t, t.flip(0))) for t in (x, y, q)))
    assert relative_error(twice[0], each) < 1e-12 and relative_error(twice[1], each.flip(0)) < 1e-12
    reference = torch.stack(
        [torch.autograd.functional.jacobian(lambda x, i=i: f(x, y[i], q[i]), x[i]) for i in range(3)]
    )
    assert relative_error(vmap(jacrev(f))(x, y, q), reference) < 1e-11


# --- torch.compile --------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    """Clear everything that was compiled before, in this process or on disk. Inductor's cache identifies an op by
    its name alone, so it could return a graph for an older build of the op."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


# (S, Q, D, C) on both sides of every rule of the plan: primal or dual; K_qs kept, or not because there are too few
# targets, too little memory (K_QS_BYTES is small here) or too few queries.
SIZES = [
    (12, 9, 7, 3),
    (33, 17, 21, 5),
    (20, 40, 5, 6),
    (12, 9, 17, 3),
    (9, 12, 30, 4),
    (20, 21, 22, 23),
    (11, 8, 13, 2),
    (20, 200, 31, 14),
    (12, 2, 30, 9),
    (16, 19, 15, 8),
]


def compile_and_compare(loss, random, sizes, batch=()):
    """Compile without a graph break and run forward and backward at each size; nothing is compiled after the first."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    first = None
    for s, q, d, c in sizes:
        arguments = problem(random, *batch, s=s, q=q, d=d, c=c)
        got, reference = compiled(*arguments).sum(), loss(*arguments).sum()
        assert relative_error(got, reference) < 1e-12
        found, expected = torch.autograd.grad(got, arguments), torch.autograd.grad(reference, arguments)
        for a, b in zip(found, expected, strict=True):
            assert relative_error(a, b) < 1e-11
        first = first or counter.frame_count
        assert counter.frame_count == first, f"compiled again at {(s, q, d, c)}"


@pytest.mark.parametrize(
    "kernel, on_failure, batch", [("linear", "raise", ()), ("linear", "nan", (2,)), ("rbf", "jitter", ())]
)
def test_compile_once_for_all_shapes_on_native(kernel, on_failure, batch, random, fresh_compiler, monkeypatch):
    monkeypatch.setattr(plan.problem, "K_QS_BYTES", 1 << 14)
    plan._choose.cache_clear()
    try:
        linear = kernel == "linear"
        kept = {sizes: plan.Problem(*sizes, linear, bordered=True, itemsize=8).kept_queries for sizes in SIZES}
        assert set(kept.values()) > {0} and (kernel == "rbf" or {d < s for s, _, d, _ in kept} == {True, False})
        compile_and_compare(loss_of("native", TWO[kernel], on_failure), random, SIZES, batch)
    finally:
        plan._choose.cache_clear()


def test_compile_the_reference(random, fresh_compiler):
    compile_and_compare(loss_of("torch", Linear(1.3, 0.4)), random, SIZES[:2])


def test_compile_raise_on_native(random, fresh_compiler):
    """The native ops raise inside a compiled graph, and name the problem as they do outside."""
    loss = loss_of("native", Linear(), "raise")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    arguments = problem(random, 2)
    assert relative_error(compiled(*arguments), loss(*arguments)) < 1e-12
    bad = [t.detach().clone() for t in arguments]
    bad[0][1] = float("nan")
    with pytest.raises(FactorizationError, match="problem 1 of 2"):
        compiled(*bad)


# Inductor tries every instruction set by a program of its own, and compiles its headers for later calls: more work than
# the two kernels here. Which instructions it writes is PyTorch's responsibility.
SCALAR = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}


def test_compile_inductor_on_native(random, fresh_compiler):
    """The reference is left out: it takes a minute of C++ compilation, and inductor's handling of it is PyTorch's
    responsibility."""
    loss = loss_of("native", Linear(bias=1.0))
    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    arguments = problem(random, s=13, q=9, d=7, c=3)
    with torch._inductor.config.patch(SCALAR):
        got, reference = compiled(*arguments), loss(*arguments)
        found, expected = torch.autograd.grad(got, arguments), torch.autograd.grad(reference, arguments)
    assert relative_error(got, reference) < 1e-12
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-11


# --- what native refuses and the reference supports ---------------------------------------------------------


@pytest.mark.parametrize("kernel", TWO.values(), ids=TWO)
def test_double_backward_and_forward_mode_of_the_reference(kernel, random):
    loss = loss_of("torch", kernel)
    arguments = problem(random)
    assert torch.autograd.gradgradcheck(loss, arguments)
    assert torch.autograd.gradcheck(loss, arguments, check_forward_ad=True)


@pytest.mark.parametrize("call", ["gram", "gram_rbf", "cholesky"])
def test_double_backward_of_what_native_offers(call, random):
    """The backward of these two consists of PyTorch's own products and solves."""
    x, a = random(4, 3, grad=True), spd(random)
    if call == "cholesky":
        assert torch.autograd.gradgradcheck(lambda a: ssdd_ext.cholesky(symmetric(a), backend="native"), (a,))
    else:
        kernel = RBF(LENGTH) if call == "gram_rbf" else Linear(SCALE, BIAS)
        f = lambda x, z, *_: ssdd_ext.gram(x, z, kernel=kernel, backend="native")  # noqa: E731
        assert torch.autograd.gradgradcheck(lambda x: f(x, None), (x,))
        assert torch.autograd.gradgradcheck(f, (x, random(3, 3, grad=True), SCALE, BIAS, LENGTH))


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("kernel", TWO)
@pytest.mark.parametrize("call", ["cholesky_solve", "krr", "krr_mse"])
@pytest.mark.parametrize("hyper", ["numbers", "tensors"])
def test_double_backward_of_the_native_ops(call, kernel, ridge, hyper, random):
    """Planned PyTorch differentiates what the native core computed: every pair of arguments, the targets too.

    Against the reference, since a detached trace is a constant for the formula and not for differences.
    """
    x_s, y_s, x_q, y_q = problem(random, s=3, q=2, d=2)
    y_q.requires_grad_()
    given = (SCALE, BIAS, LENGTH, RIDGE) if hyper == "tensors" else ()

    def f(backend, *tensors):
        own = tensors[-4:] if given else [float(t.detach()) for t in (SCALE, BIAS, LENGTH, RIDGE)]
        options = {"ridge": RIDGES[ridge](own[3]), "on_failure": "nan", "backend": backend}
        if call == "cholesky_solve":
            return ssdd_ext.cholesky_solve(symmetric(tensors[0]), tensors[1], **options)
        return getattr(ssdd_ext, call)(
            *tensors[: 4 if call == "krr_mse" else 3], kernel=KERNELS[kernel](*own[:3]), **options
        )

    first = {"cholesky_solve": (spd(random, order=3), y_s), "krr": (x_s, y_s, x_q), "krr_mse": (x_s, y_s, x_q, y_q)}
    tensors = (*first[call], *given)

    def second(backend):
        options = {"create_graph": True, "allow_unused": True}
        bars = torch.autograd.grad(f(backend, *tensors).sin().sum(), tensors, **options)
        total = sum(bar.sin().sum() for bar in bars if bar is not None)
        return torch.autograd.grad(total, tensors, allow_unused=True)

    for got, reference in zip(second("native"), second("torch"), strict=True):
        assert (got is None or not got.any()) if reference is None else relative_error(got, reference) < 1e-9
    if ridge == "mean_trace" and hyper == "numbers":
        assert torch.autograd.gradgradcheck(lambda *t: f("auto", *t), tensors)


def test_double_backward_under_transforms_and_a_third_time(random):
    x_s, y_s, x_q, y_q = (t.detach() for t in problem(random, 2))

    def loss(x, y_s, x_q, y_q, backend="auto"):
        options = {"ridge": Ridge.mean_trace(0.1), "on_failure": "nan", "backend": backend}
        return ssdd_ext.krr_mse(x, y_s, x_q, y_q, **options)

    for f in (lambda f: jacrev(jacrev(f)), lambda f: grad(lambda *t: grad(f)(*t).square().sum())):
        got = vmap(f(loss))(x_s, y_s, x_q, y_q)
        reference = vmap(f(lambda *t: loss(*t, backend="torch")))(x_s, y_s, x_q, y_q)
        assert relative_error(got, reference) < 1e-9
    x = x_s[0].clone().requires_grad_()

    def third(backend):
        value = loss(x, y_s[0], x_q[0], y_q[0], backend)
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.square().sum()
        return value

    assert relative_error(third("auto"), third("torch")) < 1e-8


def test_double_backward_of_a_failed_problem_is_nan_and_its_neighbour_is_not(random):
    x = random(2, 3, 5)
    x[1, 1] = x[1, 0]
    x.requires_grad_()
    y, q = random(2, 3, 2), random(2, 4, 5)
    p = ssdd_ext.krr(x, y, q, ridge=Ridge.absolute(torch.tensor([0.5, -0.5])), on_failure="nan", backend="native")
    (first,) = torch.autograd.grad(p.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second[0].isfinite().all() and second[1].isnan().all()


@pytest.mark.parametrize("call", ["gram", "cholesky", "cholesky_solve", "krr", "krr_mse"])
@pytest.mark.parametrize("mode", ["jvp", "dual"])
def test_native_forward_mode_is_right_or_refused_by_name(call, mode, random):
    """It never returns a zero tangent silently."""
    x, y_s, x_q, y_q = (t.detach() for t in problem(random))

    def f(x, backend):
        options = {"backend": backend, "on_failure": "nan"}
        if call == "gram":
            return ssdd_ext.gram(x, backend=backend)
        if call.startswith("cholesky"):
            a = x @ x.mT + torch.eye(4, dtype=x.dtype)
            more = () if call == "cholesky" else (y_s,)
            return getattr(ssdd_ext, call)(a, *more, **options)
        more = (y_s, x_q, y_q) if call == "krr_mse" else (y_s, x_q)
        return getattr(ssdd_ext, call)(x, *more, **options)

    def tangent(backend):
        direction = torch.ones_like(x)
        if mode == "jvp":
            return jvp(lambda x: f(x, backend), (x,), (direction,))[1]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction), backend)).tangent

    reference = tangent("torch")
    try:
        got = tangent("native")
    except (RuntimeError, NotImplementedError) as error:
        assert "backend='torch'" in str(error)
    else:
        assert got is not None and relative_error(got, reference) < 1e-10


def test_raise_under_a_transform_says_what_to_do(random):
    """backend="torch" reads the status on the host, which a transform forbids."""
    loss = loss_of("torch", Linear(), "raise")
    with pytest.raises(RuntimeError, match="on_failure='nan'"):
        vmap(loss)(*(t.detach() for t in problem(random, 3)))
