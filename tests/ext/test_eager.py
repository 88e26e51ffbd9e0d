"""Eager calls that go straight to the core: values, gradients, bits, and what else a caller may ask of the graph."""

import contextlib
import pickle

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, FactorizationError, Linear, Matern, Ridge, ops
from ssdd_ext.api import precision
from ssdd_ext.ops import eager, native

CORE = eager.core


def _counted(name, run, names):
    def call(*arguments):
        names.append(name)
        return run(*arguments)

    return call


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of the core by name, without those that estimate a condition number."""
    names = []
    monkeypatch.setattr(precision, "_finished", True)
    for name in (
        "krr_record",
        "krr_replay",
        "krr_from_gram",
        "krr_from_gram_backward",
        "krr_fit",
        "krr_fit_backward",
        "solve",
    ):
        monkeypatch.setattr(CORE, name, _counted(name, getattr(CORE, name), names))
    return names


@contextlib.contextmanager
def poisoned():
    """Fill new tensors and spare workspaces with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        for work in native._spare:
            work.fill_(float("nan"))
        assert torch.ones(1).new_empty(8).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# S, Q, D, C, batch: dual dense, low rank, primal, lanes, several problems by teams
SHAPES = {
    "dense": (30, 40, 50, 35, ()),
    "low_rank": (20, 30, 60, 3, ()),
    "primal": (60, 40, 8, 5, ()),
    "lanes": (10, 16, 12, 2, (7,)),
    "batch": (9, 16, 300, 2, (3,)),
}
KERNELS = {"linear": Linear(1.5, 0.5), "rbf": RBF(6.0)}


def inputs(shape, dtype=torch.float64):
    s, q, d, c, batch = SHAPES[shape]
    sizes = (s, d), (s, c), (q, d), (q, c)
    return [torch.randn(*batch, *size, dtype=dtype).requires_grad_() for size in sizes]


def regularised(k, ridge):
    trace = k.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    amount = ridge.value * (trace.detach() if ridge.detach else trace) / (k.shape[-1] if ridge.kind != "trace" else 1)
    return k + amount * torch.eye(k.shape[-1], dtype=k.dtype)


def formula(x_s, y_s, x_q, kernel, ridge):
    k = kernel.evaluate(x_s, x_s, *kernel.parameters)
    return kernel.evaluate(x_q, x_s, *kernel.parameters) @ torch.linalg.solve(regularised(k, ridge), y_s)


def relative_error(got, expected):
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("ridge", [Ridge.trace(0.01), Ridge.mean_trace(0.1)], ids=["trace", "mean_trace"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_krr_and_its_gradients_are_the_formula(shape, kernel, ridge, dtype, calls):
    given, kernel = inputs(shape, dtype)[:3], KERNELS[kernel]
    wide = [t.detach().double().requires_grad_() for t in given]
    expected = formula(*wide, kernel, ridge)
    bar = torch.randn_like(expected)
    with poisoned():
        p = ssdd_ext.krr(*given, kernel=kernel, ridge=ridge)
        found = torch.autograd.grad(p, given, bar.to(dtype))
    assert calls == ["krr_record", "krr_replay"]
    bound = 2e-4 if dtype == torch.float32 else 1e-10
    assert relative_error(p, expected) < bound
    for got, exact in zip(found, torch.autograd.grad(expected, wide, bar), strict=True):
        assert got.dtype == dtype and relative_error(got, exact) < bound


@pytest.mark.parametrize("shape", SHAPES)
def test_krr_mse_with_a_gradient_of_the_targets_is_the_formula(shape, calls):
    given, ridge = inputs(shape), Ridge.mean_trace(0.1)
    expected = (formula(*given[:3], KERNELS["linear"], ridge) - given[3]).square().mean((-2, -1))
    bar = torch.randn_like(expected)
    with poisoned():
        loss = ssdd_ext.krr_mse(*given, kernel=KERNELS["linear"], ridge=ridge)
        found = torch.autograd.grad(loss, given, bar)
    assert calls == ["krr_record", "krr_replay"]
    assert relative_error(loss, expected) < 1e-10
    for got, exact in zip(found, torch.autograd.grad(expected, given, bar), strict=True):
        assert relative_error(got, exact) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_krr_has_the_bits_of_the_ordinary_path(shape):
    given = inputs(shape, torch.float32)[:3]
    direct = ssdd_ext.krr(*given)
    ordinary, _ = ssdd_ext.krr(*given, return_info=True)
    assert torch.equal(direct, ordinary)
    bar = torch.randn_like(direct)
    for one, other in zip(*(torch.autograd.grad(p, given, bar) for p in (direct, ordinary)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("needed", range(3))
def test_one_gradient_alone(needed):
    given = inputs("low_rank")[:3]
    every = torch.autograd.grad(ssdd_ext.krr(*given).sum(), given)
    alone = [t.detach() for t in given]
    alone[needed].requires_grad_()
    (found,) = torch.autograd.grad(ssdd_ext.krr(*alone).sum(), alone[needed])
    assert relative_error(found, every[needed]) < 1e-12


@pytest.mark.parametrize("shape", ["low_rank", "lanes", "primal"])
def test_learned_scale_bias_and_ridge(shape, calls):
    given = inputs(shape)[:3]
    learned = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.5, 0.5, 0.1)]
    scale, bias, ridge = learned
    p = ssdd_ext.krr(*given, kernel=Linear(scale, bias), ridge=Ridge.mean_trace(ridge))
    expected = formula(*given, Linear(scale, bias), Ridge.mean_trace(ridge))
    bar = torch.randn_like(expected)
    found = torch.autograd.grad(p, (*given, *learned), bar)
    assert calls == ["krr_record", "krr_replay"]
    for got, exact in zip(found, torch.autograd.grad(expected, (*given, *learned), bar), strict=True):
        assert relative_error(got, exact) < 1e-9


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fit_without_gradients_is_that_of_the_ordinary_path(shape, kernel, calls):
    x_s, y_s, x_q, _ = (t.detach() for t in inputs(shape))
    options = {"kernel": KERNELS[kernel], "ridge": Ridge.mean_trace(0.1)}
    with poisoned():
        direct = ssdd_ext.fit(x_s, y_s, **options)
    assert calls == ["krr_fit"]
    ordinary = ssdd_ext.fit(x_s, y_s, check_finite=True, **options)
    for name in ("alpha", "weights", "x_s"):
        one, other = getattr(direct, name), getattr(ordinary, name)
        assert (one is None) == (other is None) and (one is None or relative_error(one, other) < 1e-11)
    assert direct.info.status.dtype == torch.int32 and direct.info.status.shape == x_s.shape[:-2]
    assert torch.equal(direct.info.jitter, ordinary.info.jitter)
    for one, other in zip(direct.predict(x_q, return_std=True), ordinary.predict(x_q, return_std=True), strict=True):
        assert relative_error(one, other) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("ridge", [Ridge.trace(0.01), Ridge.mean_trace(0.1)], ids=["trace", "mean_trace"])
@pytest.mark.parametrize("kernel", [*KERNELS, "matern"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_fit_and_its_gradients_are_the_formula(shape, kernel, ridge, dtype, calls):
    (x_s, y_s, x_q), kernel = inputs(shape, dtype)[:3], (KERNELS | {"matern": Matern(6.0, 1.5)})[kernel]
    wide = [t.detach().double().requires_grad_() for t in (x_s, y_s, x_q)]
    expected = formula(*wide, kernel, ridge)
    bar = torch.randn_like(expected)
    with poisoned():
        fitted = ssdd_ext.fit(x_s, y_s, kernel=kernel, ridge=ridge)
        p = fitted.predict(x_q)
        found = torch.autograd.grad(p, (x_s, y_s, x_q), bar.to(dtype))
    assert calls == ["krr_fit", "krr_fit_backward"]
    bound = 2e-4 if dtype == torch.float32 else 1e-10
    assert relative_error(p, expected) < bound
    for got, exact in zip(found, torch.autograd.grad(expected, wide, bar), strict=True):
        assert got.dtype == dtype and relative_error(got, exact) < bound
    again = ssdd_ext.fit(x_s.detach(), y_s.detach(), kernel=kernel, ridge=ridge)
    assert torch.equal(again.predict(x_q), p)


@pytest.mark.parametrize("shape", ["dense", "primal"])
def test_the_deviation_of_a_fit_with_gradients_and_its_pickle(shape):
    x_s, y_s, x_q, _ = inputs(shape)
    options = {"kernel": KERNELS["linear"], "ridge": Ridge.mean_trace(0.1)}
    stds = [
        ssdd_ext.fit(x_s, y_s, check_finite=checked, **options).predict(x_q, return_std=True)[1]
        for checked in (False, True)
    ]
    assert relative_error(*stds) < 1e-10
    bar = torch.randn_like(stds[0])
    for one, other in zip(*(torch.autograd.grad(std, (x_s, x_q), bar) for std in stds), strict=True):
        assert relative_error(one, other) < 1e-9
    fitted = ssdd_ext.fit(x_s.detach(), y_s.detach(), **options)
    again = pickle.loads(pickle.dumps(fitted))
    for one, other in zip(*(f.predict(x_q, return_std=True) for f in (fitted, again)), strict=True):
        assert torch.equal(one, other)


# --- from Gram matrices -----------------------------------------------------------------------------

GRAMS = {"one": (20, 50, 4, ()), "tiny": (1, 1, 1, ()), "wide": (40, 30, 45, ()), "batch": (12, 30, 3, (5,))}


def grams(shape, dtype=torch.float64):
    s, q, c, batch = GRAMS[shape]
    x = torch.randn(*batch, s, s + 5, dtype=dtype)
    tensors = x @ x.mT, *(torch.randn(*batch, *size, dtype=dtype) for size in ((s, c), (q, s), (q, c)))
    return [t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("ridge", [Ridge.trace(0.01), Ridge.mean_trace(0.1)], ids=["trace", "mean_trace"])
@pytest.mark.parametrize("shape", GRAMS)
@pytest.mark.parametrize("call", ["krr_from_gram", "krr_mse_from_gram"])
def test_from_gram_and_its_gradients_are_the_formula(call, shape, ridge, dtype, calls):
    given = grams(shape, dtype)
    k_ss, y_s, k_qs, y_q = wide = [t.detach().double().requires_grad_() for t in given]
    expected = k_qs @ torch.linalg.solve(regularised(0.5 * (k_ss + k_ss.mT), ridge), y_s)
    if call == "krr_from_gram":
        given, wide = given[:3], wide[:3]
    else:
        expected = (expected - y_q).square().mean((-2, -1))
    bar = torch.randn_like(expected)
    with poisoned():
        got = getattr(ssdd_ext, call)(*given, ridge=ridge)
        found = torch.autograd.grad(got, given, bar.to(dtype))
    assert calls == ["krr_from_gram", "krr_from_gram_backward"]
    bound = 2e-4 if dtype == torch.float32 else 1e-10
    assert relative_error(got, expected) < bound
    for one, exact in zip(found, torch.autograd.grad(expected, wide, bar), strict=True):
        assert one.dtype == dtype and relative_error(one, exact) < bound
    with torch.no_grad(), poisoned():
        assert torch.equal(getattr(ssdd_ext, call)(*given, ridge=ridge), got)


def test_from_gram_of_a_view_and_one_gradient_alone():
    k_ss, y_s, k_qs, y_q = grams("one")
    turned = k_qs.detach().mT.contiguous().mT.requires_grad_()
    whole = torch.autograd.grad(ssdd_ext.krr_mse_from_gram(k_ss, y_s, k_qs, y_q), (k_ss, y_s, k_qs))
    for at, one in enumerate((k_ss, y_s, turned)):
        given = [k_ss.detach(), y_s.detach(), turned.detach()]
        given[at] = one
        (found,) = torch.autograd.grad(ssdd_ext.krr_mse_from_gram(*given, y_q.detach()), one)
        assert relative_error(found, whole[at]) < 1e-12


# --- what else is asked of the graph ----------------------------------------------------------------


def _coefficients(x_s, y_s, **options):
    fitted = ssdd_ext.fit(x_s, y_s, **options)
    return fitted.weights if fitted.alpha is None else fitted.alpha


def every_call():
    ridge = Ridge.mean_trace(0.1)
    features, matrices = inputs("lanes"), grams("one")
    small = [t[:1] for t in features]
    return {
        "krr": (lambda *t: ssdd_ext.krr(*t, ridge=ridge, kernel=Linear(1.0, 0.5)), small[:3]),
        "krr_mse": (lambda *t: ssdd_ext.krr_mse(*t, ridge=ridge), small),
        "fit, dual": (lambda *t: _coefficients(*t, ridge=ridge), features[:2]),
        "fit, primal": (lambda *t: _coefficients(*t, ridge=ridge), inputs("primal")[:2]),
        "krr_from_gram": (lambda *t: ssdd_ext.krr_from_gram(*t, ridge=ridge), matrices[:3]),
        "krr_mse_from_gram": (lambda *t: ssdd_ext.krr_mse_from_gram(*t, ridge=ridge), matrices),
    }


@pytest.mark.parametrize("name", every_call())
def test_double_backward_and_batched_gradients(name):
    call, given = every_call()[name]
    given = [t.detach().requires_grad_() for t in given]

    def second(backend):
        extra = {} if backend == "auto" else {"backend": backend, "on_failure": "nan"}
        public = _coefficients if name.startswith("fit") else getattr(ssdd_ext, name)
        result = public(*given, ridge=Ridge.mean_trace(0.1), **extra)
        first = torch.autograd.grad(result.square().sum(), given, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), given)]

    for got, expected in zip(second("auto"), second("torch"), strict=True):
        assert relative_error(got, expected) < 1e-7
    result = call(*given)
    bars = torch.randn(3, *result.shape, dtype=result.dtype)
    batched = torch.autograd.grad(result, given, bars, is_grads_batched=True, retain_graph=True)
    for i, bar in enumerate(bars):
        for many, one in zip(batched, torch.autograd.grad(result, given, bar, retain_graph=True), strict=True):
            assert relative_error(many[i], one) < 1e-9


@pytest.mark.parametrize("name", every_call())
def test_a_second_backward_and_a_changed_input_are_refused(name):
    call, given = every_call()[name]
    leaves = [t.detach().requires_grad_() for t in given]
    result = call(*leaves).sum()
    result.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()
    working = [t * 1.0 for t in leaves]
    result = call(*working).sum()
    with torch.no_grad():
        working[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_a_failure_is_reported_by_the_ordinary_path():
    x = torch.ones(4, 2, requires_grad=True)
    y, ridge = torch.ones(4, 1), Ridge.absolute(0.0)
    with pytest.raises(FactorizationError, match=r"krr: .* pivot 2 of 4"):
        ssdd_ext.krr(x, y, x, kernel=RBF(1.0), ridge=ridge)
    with pytest.raises(FactorizationError, match=r"fit: .* pivot 2 of 4"):
        ssdd_ext.fit(x.detach(), y, kernel=RBF(1.0), ridge=ridge)
    assert ssdd_ext.fit(x.detach(), y, kernel=RBF(1.0), ridge=ridge, on_failure="nan").alpha.isnan().all()
    assert ssdd_ext.fit(x.detach(), y, kernel=RBF(1.0), ridge=ridge, on_failure="jitter").info.jitter > 0
    k = torch.ones(4, 4, requires_grad=True)
    with pytest.raises(FactorizationError, match=r"krr_from_gram: .* pivot 2 of 4"):
        ssdd_ext.krr_from_gram(k, y, k, ridge=ridge)
    assert ssdd_ext.krr_from_gram(k, y, k, ridge=ridge, on_failure="nan").isnan().all()
    assert ssdd_ext.krr_from_gram(k, y, k, ridge=ridge, on_failure="jitter").isfinite().all()
    negative = torch.tensor(-1.0, requires_grad=True)
    with pytest.raises(FactorizationError, match="out of range"):
        ssdd_ext.krr(x, y, x, ridge=Ridge.absolute(negative))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kernel", [Linear(1.5, 0.5), RBF(6.0), Matern(5.0, 1.5)], ids=repr)
@pytest.mark.parametrize("shape", ["dense", "lanes", "batch"])
def test_a_gram_matrix_without_gradients_has_the_bits_of_the_ordinary_path(shape, kernel, dtype):
    x, z = (t.detach() for t in inputs(shape, dtype)[:3:2])
    for given in ((x,), (x, z), (z, x.mT.contiguous().mT)):
        with poisoned():
            direct = ops.eager_gram(*given, *[None] * (2 - len(given)), kernel)
        assert torch.equal(direct, ssdd_ext.gram(*given, kernel=kernel, check_finite=True))
    assert ops.eager_gram(x.clone().requires_grad_(), None, kernel) is None
    assert ops.eager_gram(x, z[..., 1:], kernel) is None and ops.eager_gram(x[..., :0, :], z, kernel) is None
