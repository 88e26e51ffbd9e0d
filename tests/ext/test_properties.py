"""Laws that hold for every problem, tested on problems that hypothesis draws."""

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge
from ssdd_ext.testing import (
    Problem,
    condition,
    draw,
    gradients,
    kernel_matrix,
    predictions,
    regularised,
    relative_error,
)

# Derandomised, so that only the code decides whether a test passes. Deadlines would measure the load of the machine.
settings.register_profile("ssdd", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("ssdd")

BACKENDS = pytest.mark.parametrize("backend", ["native", "torch"])
KERNELS = st.one_of(
    st.builds(Linear, st.floats(0.1, 10), st.sampled_from([0.0, 0.01, 1.0, 5.0])), st.builds(RBF, st.floats(0.5, 10))
)
RIDGES = st.builds(Ridge, st.sampled_from(["absolute", "trace", "mean_trace"]), st.floats(1e-4, 1.0), st.booleans())
BATCHES = st.sampled_from([(), (1,), (3,), (2, 2)])
INDEX = st.integers(0, 10_000)


@st.composite
def problems(draw_from, kernels=KERNELS, ridges=RIDGES, s=(1, 40), d=(1, 40)):
    size = draw_from(st.tuples(st.integers(*s), st.integers(1, 20), st.integers(*d), st.integers(1, 12)))
    row = Problem("hypothesis", *size, draw_from(kernels), draw_from(ridges), batch=draw_from(BATCHES))
    return draw(row, draw_from(INDEX), requires_grad=("x_s", "y_s", "x_q"))


def krr(i, backend, **changed):
    i = dataclasses.replace(i, **changed)
    return ssdd_ext.krr(i.x_s, i.y_s, i.x_q, kernel=i.kernel, ridge=i.ridge, backend=backend)


@BACKENDS
@given(problems())
def test_the_factor_reconstructs_the_matrix(backend, inputs):
    a = regularised(kernel_matrix(inputs.kernel, inputs.x_s, inputs.x_s), inputs.ridge).detach()
    factor = ssdd_ext.cholesky(a, backend=backend)
    assert relative_error(factor @ factor.mT, a) < 1e-14
    assert torch.equal(factor, factor.tril()) and (factor.diagonal(dim1=-2, dim2=-1) > 0).all()


@BACKENDS
@given(problems())
def test_the_solution_solves(backend, inputs):
    """(K + lambda I) alpha = Y, and K_qs alpha is the prediction."""
    k_ss = kernel_matrix(inputs.kernel, inputs.x_s, inputs.x_s).detach()
    alpha = ssdd_ext.cholesky_solve(k_ss, inputs.y_s, ridge=inputs.ridge, backend=backend)
    allowed = 1e-13 * condition(inputs)
    assert relative_error(regularised(k_ss, inputs.ridge) @ alpha, inputs.y_s) < allowed
    k_qs = ssdd_ext.gram(inputs.x_q, inputs.x_s, kernel=inputs.kernel, backend=backend)
    assert float((k_qs @ alpha - krr(inputs, backend)).detach().abs().max()) < allowed * scale_of(inputs, alpha)


def scale_of(inputs, alpha):
    """Return |K_qs| |alpha|, the scale of the terms of a prediction."""
    return float((kernel_matrix(inputs.kernel, inputs.x_q, inputs.x_s).abs() @ alpha.abs()).detach().max())


@BACKENDS
@given(problems())
def test_values_and_gradients_are_the_formula(backend, inputs):
    kappa = condition(inputs)
    assume(kappa < 1e4)
    reference, got = predictions(inputs), krr(inputs, backend)
    expected, found = gradients(reference, inputs), gradients(got, inputs)
    alpha = torch.linalg.solve(
        regularised(kernel_matrix(inputs.kernel, inputs.x_s, inputs.x_s), inputs.ridge), inputs.y_s
    )
    assert float((got - reference).detach().abs().max()) < 1e-13 * kappa * scale_of(inputs, alpha)
    for name, gradient in expected.items():
        # Gradients of hypothesis' corner cases may vanish. The other gradients then set the scale.
        size = max(float(g.norm()) for g in expected.values())
        assert float((found[name] - gradient).norm()) < 1e-9 * size, name


@BACKENDS
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_support_points_does_not_matter(backend, inputs, shuffler):
    assume(condition(inputs) < 1e5)
    order = list(range(inputs.x_s.shape[-2]))
    shuffler.shuffle(order)
    shuffled = krr(inputs, backend, x_s=inputs.x_s[..., order, :], y_s=inputs.y_s[..., order, :])
    assert close(shuffled, krr(inputs, backend), 1e-9)


def close(a, b, allowed):
    return float((a - b).detach().norm()) <= allowed * max(1.0, float(b.detach().norm()))


@BACKENDS
@given(problems())
def test_the_order_of_queries_and_targets_is_kept(backend, inputs):
    assume(condition(inputs) < 1e5)
    whole = krr(inputs, backend)
    assert close(krr(inputs, backend, x_q=inputs.x_q.flip(-2)), whole.flip(-2), 1e-10)
    assert close(krr(inputs, backend, y_s=inputs.y_s.flip(-1)), whole.flip(-1), 1e-10)
    assert close(krr(inputs, backend, x_q=inputs.x_q[..., :1, :]), whole[..., :1, :], 1e-10)


@BACKENDS
@given(problems())
def test_predictions_are_linear_in_the_targets(backend, inputs):
    assume(condition(inputs) < 1e5)
    other = inputs.y_s.flip(-2)
    both = krr(inputs, backend, y_s=2.0 * inputs.y_s - 3.0 * other)
    assert close(both, 2.0 * krr(inputs, backend) - 3.0 * krr(inputs, backend, y_s=other), 1e-9)


@BACKENDS
@given(problems(kernels=st.just(Linear()), s=(1, 12), d=(24, 40)))
def test_without_ridge_it_interpolates(backend, inputs):
    """With more features than points, the predictions at the support points are the support targets."""
    inputs = dataclasses.replace(inputs, ridge=Ridge.absolute(0.0), x_q=inputs.x_s)
    assert close(krr(inputs, backend), inputs.y_s, 1e-10)


@BACKENDS
@given(
    problems(kernels=st.builds(Linear, st.floats(0.1, 10)), ridges=RIDGES.filter(lambda r: r.kind != "absolute")),
    st.sampled_from([2.0**-20, 0.25, 3.0, 2.0**20]),
)
def test_a_ridge_relative_to_the_trace_ignores_the_scale_of_the_features(backend, inputs, factor):
    assume(condition(inputs) < 1e5)
    scaled = krr(inputs, backend, x_s=inputs.x_s * factor, x_q=inputs.x_q * factor)
    assert close(scaled, krr(inputs, backend), 1e-9)


@BACKENDS
@given(problems())
def test_a_large_ridge_predicts_nothing(backend, inputs):
    p = krr(inputs, backend, ridge=Ridge.absolute(1e30))
    assert float(p.detach().abs().max()) < 1e-20


@BACKENDS
@given(problems(kernels=st.builds(Linear, st.floats(0.1, 10), st.sampled_from([0.0, 1.0]))))
def test_the_bias_is_the_ones_column(backend, inputs):
    assume(condition(inputs) < 1e5)
    scale, bias = inputs.kernel.scale, inputs.kernel.bias

    def wider(x):
        return torch.cat([scale**0.5 * x, torch.full_like(x[..., :1], bias**0.5)], -1)

    columns = krr(inputs, backend, x_s=wider(inputs.x_s), x_q=wider(inputs.x_q), kernel=Linear())
    assert close(columns, krr(inputs, backend), 1e-9)


@BACKENDS
@given(problems())
def test_a_batch_is_its_problems(backend, inputs):
    assume(inputs.x_s.dim() > 2)
    whole = krr(inputs, backend).flatten(0, -3)
    x_s, y_s, x_q = (t.flatten(0, -3) for t in (inputs.x_s, inputs.y_s, inputs.x_q))
    assume(condition(inputs) < 1e5)
    for i, p in enumerate(whole):
        assert close(krr(inputs, backend, x_s=x_s[i], y_s=y_s[i], x_q=x_q[i]), p, 1e-9)
