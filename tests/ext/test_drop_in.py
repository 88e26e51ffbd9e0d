"""docs/drop-in.md is right: each published formula in plain PyTorch has the value and gradients of the one call."""

import re

import pytest
import torch

import ssdd_ext
from ssdd_ext import Linear, Ridge
from ssdd_ext.testing import ARGUMENTS, relative_error

SYSTEMS = ["KRR-ST", "FRePo", "KIP", "RFAD"]
S, Q, D, C = 24, 60, 40, 8


def eye(k):
    return torch.eye(k.shape[-1], dtype=k.dtype)


def mse(p, y):
    return (p - y).square().mean()


def krr_st(x_s, y_s, x_q, y_q):
    x_s, x_q = (torch.cat([x, torch.ones_like(x[:, :1])], 1) for x in (x_s, x_q))
    k = x_s @ x_s.mT
    return mse(x_q @ x_s.mT @ torch.linalg.solve(k + 1e-6 * k.detach().trace() * eye(k), y_s), y_q)


def frepo(x_s, y_s, x_q, y_q):
    k = x_s @ x_s.mT
    return mse(x_q @ x_s.mT @ torch.linalg.solve(k + 1e-6 * k.trace() / S * eye(k), y_s), y_q)


def ntk(x, z):
    """Compute the kernel of a two-layer ReLU network, both layers trained: x.z (pi - t) / pi + |x||z| (sin t + (pi -
    t) cos t) / pi."""
    dot, norms = x @ z.mT, x.square().sum(1).sqrt()[:, None] * z.square().sum(1).sqrt()
    t = torch.acos((dot / norms).clamp(-1 + 1e-7, 1 - 1e-7))
    return (dot * (torch.pi - t) + norms * (torch.sin(t) + (torch.pi - t) * torch.cos(t))) / torch.pi


def kip(x_s, y_s, x_q, y_q):
    k = ntk(x_s, x_s)
    return mse(ntk(x_q, x_s) @ torch.linalg.solve(k + 1e-6 * k.trace() / S * eye(k), y_s), y_q)


def rfad(x_s, y_s, x_q, y_q):
    x_s, y_s, x_q, y_q = (t.double() for t in (x_s, y_s, x_q, y_q))
    k = 2 * x_s @ x_s.mT + 0.01
    return mse((2 * x_q @ x_s.mT + 0.01) @ torch.linalg.solve(k + 5e-3 * k.trace() / S * eye(k), y_s), y_q)


def kip_call(x_s, y_s, x_q, y_q, **keywords):
    matrices = ntk(x_s, x_s), y_s, ntk(x_q, x_s), y_q
    return ssdd_ext.krr_mse_from_gram(*matrices, ridge=Ridge.mean_trace(1e-6), **keywords)


FORMULAS = {"KRR-ST": krr_st, "FRePo": frepo, "KIP": kip, "RFAD": rfad}
OPTIONS = {
    "KRR-ST": {"kernel": Linear(bias=1.0), "ridge": Ridge.trace(1e-6)},
    "FRePo": {"kernel": Linear(), "ridge": Ridge.mean_trace(1e-6)},
    "RFAD": {"kernel": Linear(2.0, 0.01), "ridge": Ridge.mean_trace(5e-3), "solve_dtype": torch.float64},
}


def call(system, arguments, backend):
    if system == "KIP":
        return kip_call(*arguments, backend=backend)
    return ssdd_ext.krr_mse(*arguments, backend=backend, **OPTIONS[system])


def problem(random, dtype):
    shapes = ((S, D), (S, C), (Q, D), (Q, C))
    return [random(*shape, dtype=dtype, grad=True) for shape in shapes]


def compare(got, reference, arguments, exact, allowed):
    assert got.dtype == arguments[0].dtype and got.shape == ()
    assert relative_error(got, reference) < allowed
    expected = torch.autograd.grad(reference, exact)
    for name, found, gradient in zip(ARGUMENTS, torch.autograd.grad(got, arguments), expected, strict=True):
        assert found.dtype == arguments[0].dtype
        assert relative_error(found, gradient) < allowed, f"gradient of {name}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_formula_at_float64(system, backend, random):
    arguments = problem(random, torch.float64)
    compare(call(system, arguments, backend), FORMULAS[system](*arguments), arguments, arguments, 1e-10)


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_formula_at_float32(system, backend, random):
    """Compare with the formula in float64 on the same float32 numbers; condition numbers are below 200 here."""
    arguments = problem(random, torch.float32)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    allowed = {"RFAD": 3e-7, "KIP": 1e-4}.get(system, 2e-5)  # float64 inside; arc cosine in float32; plain
    compare(call(system, arguments, backend), FORMULAS[system](*exact), arguments, exact, allowed)


@pytest.mark.parametrize("system", SYSTEMS)
def test_conventions_differ(system, random):
    """Each call differs from every other system's formula, so the comparison above can fail."""
    arguments = problem(random, torch.float64)
    gradient = torch.autograd.grad(call(system, arguments, "torch"), arguments[0])[0]
    for other in set(SYSTEMS) - {system}:
        assert relative_error(gradient, torch.autograd.grad(FORMULAS[other](*arguments), arguments[0])[0]) > 1e-6, other


def test_attached_and_detached_traces_differ(backend, random):
    arguments = problem(random, torch.float64)
    detached, attached = (
        torch.autograd.grad(
            ssdd_ext.krr_mse(*arguments, ridge=Ridge.mean_trace(5e-3, detach=detach), backend=backend), arguments[0]
        )[0]
        for detach in (True, False)
    )
    assert relative_error(detached, attached) > 1e-4


# --- the page -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sections(root):
    """Return heading -> its Python blocks."""
    text = (root / "docs" / "drop-in.md").read_text()
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    named = zip(parts[1::2], parts[2::2], strict=True)
    return {heading: re.findall(r"^```python\n(.*?)^```", body, re.M | re.S) for heading, body in named}


@pytest.mark.parametrize("system", SYSTEMS)
def test_before_and_after_of_the_page_agree(sections, system):
    names: dict = {}
    exec(sections["The ridge conventions"][0], names)
    exec(sections[system][0], names)
    arguments = [names[n].detach().double().requires_grad_() for n in ("x_syn", "y_syn", "x_real", "y_real")]
    before, after = names["before"](*arguments), names["after"](*arguments)
    compare(after, before, arguments, arguments, 1e-10)
