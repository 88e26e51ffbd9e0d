"""``symmetric_grad=False``: the gradient to a Gram matrix as ``torch.linalg.solve`` has it, not symmetrised."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import Ridge
from ssdd_ext.testing import relative_error

S, Q, C = 9, 7, 3
BACKENDS = ("native", "planned", "torch")
RIDGES = {
    "absolute": lambda v: Ridge.absolute(v),
    "trace": lambda v: Ridge.trace(v),
    "through_trace": lambda v: Ridge.mean_trace(v),
    "number": lambda v: Ridge.mean_trace(0.3),
    "per_target": lambda v: Ridge.per_target(v[..., None] * torch.tensor([0.5, 1.0, 2.0], dtype=v.dtype)),
    "noise": lambda v: Ridge.noise(v[..., None] * torch.linspace(1, 2, S, dtype=v.dtype)),
}


def problem(batch=(), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, S, S + 3, generator=generator, dtype=dtype)
    rest = (torch.randn(*batch, *shape, generator=generator, dtype=dtype) for shape in ((S, C), (Q, S), (Q, C)))
    return [t.requires_grad_() for t in (x @ x.mT, *rest, torch.full(batch, 0.3, dtype=dtype))]


def exact_loss(k_ss, y_s, k_qs, y_q, value, ridge):
    """The formula with a general solve, so that autograd treats all S x S entries of K_ss as independent."""
    if ridge == "per_target":
        columns = [value * factor for factor in (0.5, 1.0, 2.0)]
        eye = torch.eye(S, dtype=k_ss.dtype)
        alpha = torch.stack(
            [torch.linalg.solve(k_ss + v[..., None, None] * eye, y_s[..., c]) for c, v in enumerate(columns)], -1
        )
    else:
        own = RIDGES[ridge](value)
        amount = torch.as_tensor(own.diagonal(k_ss, own.value), dtype=k_ss.dtype)
        alpha = torch.linalg.solve(k_ss + amount[..., None] * torch.eye(S, dtype=k_ss.dtype), y_s)
    return (k_qs @ alpha - y_q).square().mean((-2, -1))


def loss(k_ss, y_s, k_qs, y_q, value, ridge, backend, **how):
    return ssdd_ext.krr_mse_from_gram(k_ss, y_s, k_qs, y_q, ridge=RIDGES[ridge](value), backend=backend, **how)


def gradients(value, leaves):
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("ridge", RIDGES)
def test_gradients_are_those_of_a_general_solve(ridge, backend):
    if backend == "native" and ridge in ("per_target", "noise"):
        pytest.skip("the core has no ridge of this kind")
    leaves = problem((2,), seed=1)
    right = gradients(exact_loss(*leaves, ridge).sum(), leaves)
    raw = gradients(loss(*leaves, ridge, backend, symmetric_grad=False).sum(), leaves)
    half = gradients(loss(*leaves, ridge, backend).sum(), leaves)
    for got, expected in zip(raw, right, strict=True):
        assert relative_error(got, expected) < 1e-11 or expected.abs().max() == 0
    assert relative_error(raw[0], raw[0].mT) > 0.1
    assert relative_error(half[0], (raw[0] + raw[0].mT) / 2) < 1e-11
    for got, expected in zip(half[1:], raw[1:], strict=True):
        assert relative_error(got, expected) < 1e-11 or expected.abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_predictions_and_solutions_have_it_too(backend):
    k_ss, y_s, k_qs, _, _ = problem(dtype=torch.float32, seed=2)
    for result, expected in (
        (
            lambda k: ssdd_ext.krr_from_gram(
                k, y_s, k_qs, ridge=Ridge.trace(0.01), symmetric_grad=False, backend=backend
            ),
            lambda k: k_qs.double() @ torch.linalg.solve(k + 0.01 * k.detach().trace() * torch.eye(S), y_s.double()),
        ),
        (
            lambda k: ssdd_ext.cholesky_solve(k, y_s, symmetric_grad=False, backend=backend),
            lambda k: torch.linalg.solve(k, y_s.double()),
        ),
    ):
        wide = k_ss.detach().double().requires_grad_()
        (right,) = torch.autograd.grad(expected(wide).sin().sum(), wide)
        (raw,) = torch.autograd.grad(result(k_ss).sin().sum(), k_ss)
        assert relative_error(raw, right) < 2e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend):
    leaves = problem(seed=3)
    direction = torch.randn(S, S, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def second(function):
        (first,) = torch.autograd.grad(function(), leaves[0], create_graph=True)
        return gradients((first * direction).sum(), leaves)

    right = second(lambda: exact_loss(*leaves, "through_trace"))
    got = second(lambda: loss(*leaves, "through_trace", backend, symmetric_grad=False))
    for g, r in zip(got, right, strict=True):
        assert relative_error(g, r) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_vmap_and_grad(backend):
    leaves = [t.detach() for t in problem((4,), seed=5)]

    def one(*values):
        return loss(*values, "absolute", backend, symmetric_grad=False, on_failure="nan")

    got = torch.func.vmap(torch.func.grad(one))(*leaves)
    moving = [t.clone().requires_grad_() for t in leaves]
    right = gradients(exact_loss(*moving, "absolute").sum(), moving)[0]
    assert relative_error(got, right) < 1e-11


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_upper_triangle_is_not_read(backend):
    k_ss, y_s, k_qs, y_q, value = problem(seed=6)
    right = gradients(exact_loss(k_ss, y_s, k_qs, y_q, value, "absolute"), [k_ss])[0]
    lower = k_ss.detach().tril() + torch.full((S, S), float("nan"), dtype=k_ss.dtype).triu(1)
    lower.requires_grad_()
    got = gradients(loss(lower, y_s, k_qs, y_q, value, "absolute", backend, symmetric_grad=False), [lower])[0]
    below = torch.ones(S, S, dtype=torch.bool).tril()
    assert relative_error(got[below], right[below]) < 1e-11


def test_in_a_compiled_graph():
    leaves = problem(seed=7)
    compiled = torch.compile(
        lambda *values: loss(*values, "absolute", "auto", symmetric_grad=False, on_failure="nan"),
        backend="aot_eager",
        fullgraph=True,
    )
    right = gradients(exact_loss(*leaves, "absolute"), leaves)
    for got, expected in zip(gradients(compiled(*leaves), leaves), right, strict=True):
        assert relative_error(got, expected) < 1e-11


def test_a_failed_problem_has_no_gradient():
    k_ss, y_s, k_qs, y_q, value = problem((2,), seed=8)
    k_ss.data[1] -= 100 * torch.eye(S, dtype=k_ss.dtype)
    for backend in BACKENDS:
        result = loss(k_ss, y_s, k_qs, y_q, value, "absolute", backend, symmetric_grad=False, on_failure="nan")
        (got,) = torch.autograd.grad(result.sum(), k_ss)
        assert got[0].isfinite().all()
        assert not got[1].isfinite().any() or backend == "torch"
