"""krr, krr_mse, fit and the calls on given Gram matrices: values and gradients on the whole problem table."""

from itertools import combinations

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge
from ssdd_ext.testing import (
    ARGUMENTS,
    TABLE,
    condition,
    draw,
    gradients,
    kernel_matrix,
    mse,
    predictions,
    regularised,
    relative_error,
    solve,
)

WITH_QUERIES = [name for name, row in TABLE.items() if row.q > 0]


def tolerance(kappa: float) -> float:
    """Return 1e-9 up to a condition number of 1e4; beyond, the formulas themselves differ in proportion to it."""
    return 1e-9 if kappa < 1e4 else 1e-9 * (kappa / 1e4)


def check(got, right, inputs, where, allowed=None):
    """Compare value and all gradients of `got` with those of the formula, both computed from the leaves of `inputs`."""
    allowed = tolerance(condition(inputs)) if allowed is None else allowed
    assert got.dtype == right.dtype
    assert relative_error(got, right) <= allowed, f"{where}: value"
    expected, found = gradients(right, inputs), gradients(got, inputs)
    assert found.keys() == expected.keys(), where
    for name, gradient in expected.items():
        assert found[name].dtype == gradient.dtype
        error = relative_error(found[name], gradient)
        assert error <= allowed, f"{where}: gradient of {name} is off by {error:.1e}, allowed {allowed:.1e}"


def krr(i, **keywords):
    return ssdd_ext.krr(i.x_s, i.y_s, i.x_q, kernel=i.kernel, ridge=i.ridge, **keywords)


def krr_mse(i, **keywords):
    return ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, kernel=i.kernel, ridge=i.ridge, **keywords)


@pytest.mark.parametrize("name", TABLE)
def test_krr_is_the_formula(name, backend):
    inputs = draw(TABLE[name])
    check(krr(inputs, backend=backend), predictions(inputs), inputs, name)


@pytest.mark.parametrize("name", WITH_QUERIES)
def test_krr_mse_is_the_formula(name, backend):
    inputs = draw(TABLE[name])
    check(krr_mse(inputs, backend=backend), mse(inputs), inputs, name)


@pytest.mark.parametrize("name", TABLE)
def test_fit_predicts_the_formula(name, backend):
    inputs = draw(TABLE[name])
    fitted = ssdd_ext.fit(inputs.x_s, inputs.y_s, kernel=inputs.kernel, ridge=inputs.ridge, backend=backend)
    check(fitted.predict(inputs.x_q), predictions(inputs), inputs, name)


@pytest.mark.parametrize("name", ["tall_tiny_ridge", "krr_st_tall", "tall_linear"])
def test_fit_is_primal_if_krr_is(name, backend):
    """In float32 a dual solve of more points than features loses the digits that a tiny ridge leaves."""
    inputs = draw(TABLE[name], 1, torch.float32)
    fitted = ssdd_ext.fit(inputs.x_s, inputs.y_s, kernel=inputs.kernel, ridge=inputs.ridge, backend=backend)
    assert fitted.alpha is None and fitted.weights is not None
    exact = inputs.to(torch.float64)
    right = predictions(exact)
    ours = relative_error(fitted.predict(inputs.x_q), right)
    assert ours <= max(3 * relative_error(krr(inputs, backend="native"), right), 4 * 2.0**-24)


@pytest.mark.parametrize("name", TABLE)
def test_krr_from_gram_is_the_formula(name, backend):
    """Gram matrices are computed by autograd outside, and their gradient must reach the features."""
    inputs = draw(TABLE[name])
    k_ss = kernel_matrix(inputs.kernel, inputs.x_s, inputs.x_s)
    k_qs = kernel_matrix(inputs.kernel, inputs.x_q, inputs.x_s)
    p = ssdd_ext.krr_from_gram(k_ss, inputs.y_s, k_qs, ridge=inputs.ridge, backend=backend)
    check(p, predictions(inputs), inputs, name)
    if inputs.y_q.shape[-2]:
        loss = ssdd_ext.krr_mse_from_gram(k_ss, inputs.y_s, k_qs, inputs.y_q, ridge=inputs.ridge, backend=backend)
        check(loss, mse(inputs), inputs, name)


@pytest.mark.parametrize("name", TABLE)
def test_cholesky_solve_is_the_formula(name, backend):
    inputs = draw(TABLE[name])
    k_ss = kernel_matrix(inputs.kernel, inputs.x_s, inputs.x_s)
    got = ssdd_ext.cholesky_solve(k_ss, inputs.y_s, ridge=inputs.ridge, backend=backend)
    check(got, solve(regularised(k_ss, inputs.ridge), inputs.y_s, "lu"), inputs, name)


RIDGES = [Ridge.absolute(0.5), Ridge.trace(1e-2), Ridge.mean_trace(1e-2)]
SUBSETS = [subset for size in range(5) for subset in combinations(ARGUMENTS, size)]


# Every subset with hyper-parameters that are numbers; none, one or all arguments with those that are tensors.
MASKS = [(s, hyper) for hyper in ("numbers", "scalar") for s in SUBSETS if hyper == "numbers" or len(s) in (0, 1, 4)]


@pytest.mark.parametrize("name", ["krr_st_tall", "rfad", "batch_broadcast", "tall_rbf"])
@pytest.mark.parametrize("subset, hyper", MASKS, ids=lambda s: s if isinstance(s, str) else "+".join(s) or "none")
def test_every_combination_of_requires_grad(name, subset, hyper, backend):
    row = TABLE[name]
    if hyper != "numbers":
        row = ssdd_ext.testing.Problem(**vars(row) | {"hyper": hyper, "ridge": Ridge.mean_trace(1e-2)})
    inputs = draw(row, requires_grad=subset)
    reference = bool(subset) or hyper != "numbers"
    loss = krr_mse(inputs, backend=backend)
    assert loss.requires_grad == reference
    assert krr(inputs, backend=backend).requires_grad == (bool(set(subset) - {"y_q"}) or hyper != "numbers")
    assert set(gradients(loss, inputs)) == set(inputs.leaves())
    check(loss, mse(inputs), inputs, f"{name} {subset}")
    check(krr(inputs, backend=backend), predictions(inputs), inputs, f"{name} {subset}")


@pytest.mark.parametrize("hyper", ["scale", "bias", "ridge"])
def test_each_hyper_parameter_alone(hyper, backend, random):
    """One hyper-parameter is a tensor; the others stay numbers and get no gradient."""
    inputs = draw(TABLE["rfad"], requires_grad=())
    value = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    kernel = {"scale": Linear(value, 0.3), "bias": Linear(2.0, value)}.get(hyper, inputs.kernel)
    ridge = Ridge.mean_trace(value if hyper == "ridge" else 5e-3)
    inputs = ssdd_ext.testing.Inputs(**vars(inputs) | {"kernel": kernel, "ridge": ridge})
    assert set(inputs.leaves()) == {hyper}
    check(krr(inputs, backend=backend), predictions(inputs), inputs, hyper)


@pytest.mark.parametrize("bias", [0.0, 1.0], ids=["bias0", "bias1"])
@pytest.mark.parametrize("ridge", RIDGES, ids=lambda r: r.kind)
def test_stride_zero_features_and_targets(ridge, bias, backend, random):
    """x_s is constant along its features, y_s along its targets: one stored number is read many times."""
    column, target = random(9, 1), random(9, 1)
    x_s, y_s = column.expand(9, 4).requires_grad_(), target.expand(9, 3).requires_grad_()
    x_q, y_q = random(1, 4).expand(5, 4).requires_grad_(), random(5, 1).expand(5, 3).requires_grad_()
    inputs = ssdd_ext.testing.Inputs(x_s, y_s, x_q, y_q, Linear(bias=bias), ridge)
    check(krr(inputs, backend=backend), predictions(inputs), inputs, "stride 0")
    check(krr_mse(inputs, backend=backend), mse(inputs), inputs, "stride 0")


def test_one_tensor_in_several_roles(backend, random):
    x, y = random(8, 5, grad=True), random(8, 3, grad=True)
    inputs = ssdd_ext.testing.Inputs(x, y, x, y, RBF(2.0), Ridge.absolute(0.1))
    check(krr_mse(inputs, backend=backend), mse(inputs), inputs, "same tensors")


@pytest.mark.parametrize("kernel", [Linear(bias=1.0), RBF(3.0)], ids=["linear", "rbf"])
def test_no_targets(kernel, backend, random):
    x, y, q = random(6, 4, grad=True), random(6, 0, grad=True), random(3, 4, grad=True)
    for p in (
        ssdd_ext.krr(x, y, q, kernel=kernel, backend=backend),
        ssdd_ext.fit(x, y, kernel=kernel, backend=backend).predict(q),
    ):
        assert p.shape == (3, 0)
        for gradient, t in zip(torch.autograd.grad(p.sum(), (x, y, q)), (x, y, q), strict=True):
            assert torch.equal(gradient, torch.zeros_like(t))


def test_rbf_gradients_do_not_cancel(backend, random):
    """For points 1e-3 apart, 1e3 from the origin, differences are exact in float32, but sums of coordinates are not."""
    x_s, x_q = ((1e3 + 1e-3 * random(n, 6)).float().requires_grad_() for n in (12, 9))
    y_s, y_q = (random(n, 2, dtype=torch.float32, grad=True) for n in (12, 9))
    inputs = ssdd_ext.testing.Inputs(x_s, y_s, x_q, y_q, RBF(2e-3), Ridge.absolute(0.1))
    exact = inputs.to(torch.float64)
    assert relative_error(krr(inputs, backend=backend), predictions(exact)) < 1e-5
    expected = gradients(predictions(exact), exact)
    for name, gradient in gradients(krr(inputs, backend=backend), inputs).items():
        assert relative_error(gradient, expected[name]) < 1e-4, name


@pytest.mark.parametrize("kernel", [Linear(bias=1.0), RBF(3.0)], ids=["linear", "rbf"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("targets", ["half", "float32"])
def test_half_precision_computes_in_float32(half, targets, kernel, backend):
    """The result is float32, as for converted features; each gradient has its input's dtype and is rounded once."""
    row = ssdd_ext.testing.Problem("half", 12, 9, 16, 4, kernel, Ridge.mean_trace(1e-2))
    inputs = draw(row, dtype=half)
    if targets == "float32":
        wide = {n: getattr(inputs, n).detach().float().requires_grad_() for n in ("y_s", "y_q")}
        inputs = ssdd_ext.testing.Inputs(**vars(inputs) | wide)
    exact = inputs.to(torch.float64)
    for call, formula in ((krr, predictions), (krr_mse, mse)):
        got, right = call(inputs, backend=backend), formula(exact)
        assert got.dtype == torch.float32
        assert relative_error(got, right) < 1e-5
        found, expected = gradients(got, inputs), gradients(right, exact)
        for name in ARGUMENTS if call is krr_mse else ARGUMENTS[:3]:
            assert found[name].dtype == getattr(inputs, name).dtype
            one_rounding = 1e-5 + torch.finfo(found[name].dtype).eps
            assert relative_error(found[name], expected[name]) < one_rounding, name
    k = ssdd_ext.gram(inputs.x_s, inputs.x_q, kernel=kernel, backend=backend)
    assert k.dtype == torch.float32
    assert relative_error(k, kernel_matrix(kernel, exact.x_s, exact.x_q)) < 1e-6


def test_solve_dtype_float64_on_float32(backend):
    """kappa is 2e7: float32 has no correct digits; with float64 inside, only the result is rounded."""
    inputs = draw(TABLE["tall_tiny_ridge"], dtype=torch.float32)
    exact = inputs.to(torch.float64)
    got = krr(inputs, backend=backend, solve_dtype=torch.float64, on_failure="nan")
    assert got.dtype == torch.float32
    assert relative_error(got, predictions(exact)) < 1e-7
    expected = gradients(predictions(exact), exact)
    for name, gradient in gradients(got, inputs).items():
        assert gradient.dtype == torch.float32
        # W is rounded to float32 in the call, but not in the exact gradient.
        assert relative_error(gradient, expected[name]) < 2e-6, name
    if backend == "torch":  # native runs the primal, which is well conditioned
        plain = krr(inputs, backend=backend, on_failure="nan")
        assert not relative_error(plain, predictions(exact)) < 1e-4, "the problem is too easy to show a difference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["krr_st", "past_block_linear", "blocks_rbf", "hyper_broadcast_linear", "krr_st_tall"])
def test_same_inputs_same_bits(name, dtype, backend):
    def run():
        inputs = draw(TABLE[name], dtype=dtype)
        loss = krr_mse(inputs, backend=backend)
        return [loss, krr(inputs, backend=backend), *gradients(loss, inputs).values()]

    first = run()
    for _ in range(3):
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b), name


def test_inputs_are_not_written(backend):
    inputs = draw(TABLE["hyper_broadcast_linear"])
    before = inputs.map(lambda t: t.detach().clone())
    gradients(krr_mse(inputs, backend=backend), inputs)
    for name in ARGUMENTS:
        assert torch.equal(getattr(inputs, name), getattr(before, name)), name


def test_backward_twice_gives_the_same(backend):
    inputs = draw(TABLE["krr_st"])
    loss = krr_mse(inputs, backend=backend)
    first = torch.autograd.grad(loss, inputs.x_s, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, inputs.x_s)[0])


def test_gradient_after_an_input_changed_in_place_is_refused(backend):
    """The backward reads x_s, so autograd's version check must see it; otherwise the gradient would be silently
    wrong."""
    inputs = draw(TABLE["krr_st"])
    x_s = inputs.x_s.detach().clone().requires_grad_()
    moved = x_s * 1.0
    loss = ssdd_ext.krr_mse(moved, inputs.y_s, inputs.x_q, inputs.y_q, backend=backend)
    moved.mul_(2.0)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_gradients_that_are_not_required_are_none(backend):
    inputs = draw(TABLE["krr_st"], requires_grad=("y_s",))
    krr_mse(inputs, backend=backend).backward()
    assert inputs.y_s.grad is not None
    assert inputs.x_s.grad is None and inputs.x_q.grad is None and inputs.y_q.grad is None


def test_small_problem_gives_its_gradients_again(random):
    """The fast path returns its gradients once. A retained graph computes them again and never shares them."""
    x_s, y_s = random(6, 20).requires_grad_(), random(6, 3).requires_grad_()
    x_q, y_q = random(30, 20), random(30, 3)
    loss = ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, ridge=Ridge.trace(1e-2))
    first = torch.autograd.grad(loss, (x_s, y_s), retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()  # a gradient belongs to its receiver
    second = torch.autograd.grad(loss, (x_s, y_s), retain_graph=True)
    for a, b in zip(kept, second, strict=True):
        assert torch.equal(a, b)
    tripled = torch.autograd.grad(3 * loss, (x_s, y_s), retain_graph=True)
    for a, b in zip(kept, tripled, strict=True):
        torch.testing.assert_close(3 * a, b)
    with torch.no_grad():
        x_q.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, (x_s, y_s))


@pytest.mark.parametrize("backend", ("native", "planned", "torch"))
def test_no_queries_in_a_batch_of_several_dimensions(backend):
    x_s, y_s, x_q = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 5, 2), torch.empty(2, 3, 0, 4)
    p = ssdd_ext.krr(x_s, y_s, x_q, backend=backend)
    assert p.shape == (2, 3, 0, 2)
    p.sum().backward()
    assert x_s.grad.shape == x_s.shape and not x_s.grad.any()
