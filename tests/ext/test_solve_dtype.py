"""solve_dtype=torch.float64 on float32 inputs: every call computes in float64, and only its result is rounded.

The regressions are so ill conditioned that a rounding to float32 between the solve and the product is visible: alpha is
much larger than the predictions, in which it cancels.
"""

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge
from ssdd_ext.testing import kernel_matrix, regularised

RIDGES = [1e-4, 1e-6, 1e-8]
# One rounding of the result, and of each gradient to its input's float32.
ROUNDING = 5e-7
NAMES = ("x_s", "y_s", "x_q", "y_q")


def problem(kernel, batch=(), s=60, q=25, d=1):
    """Return float32 leaves: a smooth curve with noise, at points so close that the Gram matrix is nearly singular."""
    generator = torch.Generator().manual_seed(s + d)
    x_s = torch.rand(*batch, s, d, generator=generator)
    y_s = torch.sin(6 * x_s.sum(-1, keepdim=True)) + 0.1 * torch.randn(*batch, s, 2, generator=generator)
    x_q, y_q = torch.rand(*batch, q, d, generator=generator), torch.randn(*batch, q, 2, generator=generator)
    hyper = {n: torch.tensor(v, requires_grad=True) for n, v in kernel[1].items()}
    leaves = {n: t.requires_grad_() for n, t in zip(NAMES, (x_s, y_s, x_q, y_q), strict=True)}
    return leaves | hyper, lambda values: kernel[0](**{n: values[n] for n in hyper})


def wide(leaves):
    return {n: t.detach().double().requires_grad_() for n, t in leaves.items()}


def exact_alpha(k_ss, y_s, ridge):
    return torch.linalg.solve(regularised(k_ss, ridge), y_s)


def exact(leaves, kernel, ridge):
    """Return the predictions and their error, in the dtype of the leaves."""
    k = kernel(leaves)
    k_ss, k_qs = kernel_matrix(k, leaves["x_s"], leaves["x_s"]), kernel_matrix(k, leaves["x_q"], leaves["x_s"])
    p = k_qs @ exact_alpha(k_ss, leaves["y_s"], ridge)
    return p, (p - leaves["y_q"]).square().mean((-2, -1))


def hold(got, expected, got_leaves, want_leaves, bound=ROUNDING):
    assert got.dtype == torch.float32
    scale = expected.detach().abs().max()
    assert (got.double() - expected).abs().max() <= bound * scale
    # Weights that float32 represents exactly, so that both sides have the same ones.
    weight = (torch.arange(got.numel()) % 7 - 3.0).reshape(got.shape) + 0.5
    found = torch.autograd.grad((got * weight).sum(), list(got_leaves.values()), allow_unused=True)
    right = torch.autograd.grad((expected * weight.double()).sum(), list(want_leaves.values()), allow_unused=True)
    for name, f, r in zip(got_leaves, found, right, strict=True):
        assert (f is None) == (r is None), name
        if f is not None:
            assert f.dtype == torch.float32, name
            assert (f.double() - r).abs().max() <= bound * r.abs().max(), name


KERNELS = {"rbf": (RBF, {"lengthscale": 0.5}), "linear": (Linear, {"scale": 1.3, "bias": 0.7})}
SIZES = {"rbf": {}, "linear": {"s": 12, "d": 20}}  # linear: dual, more features than support points


def krr(x, kernel, **options):
    return ssdd_ext.krr(x["x_s"], x["y_s"], x["x_q"], kernel=kernel, **options)


def fit(x, kernel, **options):
    return ssdd_ext.fit(x["x_s"], x["y_s"], kernel=kernel, **options).predict(x["x_q"])


def krr_mse(x, kernel, **options):
    return ssdd_ext.krr_mse(x["x_s"], x["y_s"], x["x_q"], x["y_q"], kernel=kernel, **options)


@pytest.mark.parametrize("lam", RIDGES)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("call", [krr, fit, krr_mse])
def test_on_features(call, name, batch, lam, backend):
    leaves, kernel = problem(KERNELS[name], batch, **SIZES[name])
    other, ridge = wide(leaves), Ridge.absolute(lam)
    got = call(leaves, kernel(leaves), ridge=ridge, backend=backend, solve_dtype=torch.float64)
    expected = exact(other, kernel, ridge)[call is krr_mse]
    # The formulas of both sides lose the same digits of float64; the smallest ridge leaves about eight.
    hold(got, expected, leaves, other, ROUNDING if lam > 1e-8 else 4 * ROUNDING)


@pytest.mark.parametrize("lam", RIDGES)
@pytest.mark.parametrize("call", [krr, fit, krr_mse])
def test_primal_with_a_tensor_for_scale(call, lam, backend):
    """The primal also takes the root of the scale in float64. The last feature is nearly equal to the first, so H is
    as ill conditioned as the ridge is small."""
    leaves, _ = problem((Linear, {}), s=80, d=6)
    with torch.no_grad():
        for name in ("x_s", "x_q"):
            leaves[name][..., -1] = leaves[name][..., 0] * (1 + 1e-4 * leaves[name][..., 1])
    leaves["scale"] = torch.tensor(1.3, requires_grad=True)
    other, ridge = wide(leaves), Ridge.absolute(lam)
    got = call(leaves, Linear(leaves["scale"], 0.5), ridge=ridge, backend=backend, solve_dtype=torch.float64)

    def phi(x):
        return torch.cat((x * other["scale"].sqrt(), torch.full_like(x[..., :1], 0.5**0.5)), -1)

    h = phi(other["x_s"]).mT @ phi(other["x_s"])
    p = phi(other["x_q"]) @ exact_alpha(h, phi(other["x_s"]).mT @ other["y_s"], ridge)
    expected = (p - other["y_q"]).square().mean((-2, -1)) if call is krr_mse else p
    # The reference's krr is dual. There what remains of the scale's gradient is of the order of the ridge.
    hold(got, expected, leaves, other, 1e-3 if backend == "torch" and call is not fit else 1e-5)


def from_gram():
    """Return float32 Gram matrices that are positive definite with the ridge, although their entries are rounded."""
    x, kernel = problem(KERNELS["rbf"])
    k = kernel(x)
    k_ss = kernel_matrix(k, x["x_s"], x["x_s"]).detach()
    k_ss = k_ss + 2e-6 * torch.eye(k_ss.shape[-1])
    leaves = {"k_ss": k_ss, "y_s": x["y_s"].detach(), "k_qs": kernel_matrix(k, x["x_q"], x["x_s"]).detach()}
    leaves |= {"y_q": x["y_q"].detach()}
    return {n: t.clone().requires_grad_() for n, t in leaves.items()}


def symmetric(gradient_of):
    """Return the symmetric matrix whose lower triangle the calls on Gram matrices read, for gradients."""
    return 0.5 * (gradient_of + gradient_of.mT)


@pytest.mark.parametrize("lam", RIDGES)
@pytest.mark.parametrize("call", ["krr_from_gram", "krr_mse_from_gram", "cholesky_solve"])
def test_on_gram_matrices(call, lam, backend):
    leaves = from_gram()
    other, ridge = wide(leaves), Ridge.absolute(lam)
    options = {"ridge": ridge, "backend": backend, "solve_dtype": torch.float64}
    alpha = exact_alpha(symmetric(other["k_ss"]), other["y_s"], ridge)
    p = other["k_qs"] @ alpha
    if call == "cholesky_solve":
        got, expected = ssdd_ext.cholesky_solve(leaves["k_ss"], leaves["y_s"], **options), alpha
    elif call == "krr_from_gram":
        got, expected = ssdd_ext.krr_from_gram(leaves["k_ss"], leaves["y_s"], leaves["k_qs"], **options), p
    else:
        got = ssdd_ext.krr_mse_from_gram(*leaves.values(), **options)
        expected = (p - other["y_q"]).square().mean((-2, -1))
    hold(got, expected, leaves, other)


def test_float32_alone_would_not_do(backend):
    """These problems detect the difference: one rounding of alpha in the middle loses all digits."""
    leaves = from_gram()
    other, ridge = wide(leaves), Ridge.absolute(1e-6)
    alpha = exact_alpha(symmetric(other["k_ss"]), other["y_s"], ridge)
    p = other["k_qs"] @ alpha
    rounded = leaves["k_qs"] @ alpha.float()
    assert (rounded - p).abs().max() > 20 * ROUNDING * p.abs().max()


def test_what_a_fit_holds_is_in_the_dtype_it_was_solved_in(backend):
    leaves, kernel = problem(KERNELS["rbf"])
    options = {"ridge": Ridge.absolute(1e-6), "backend": backend}
    plain = ssdd_ext.fit(leaves["x_s"], leaves["y_s"], kernel=kernel(leaves), on_failure="jitter", **options)
    fitted = ssdd_ext.fit(leaves["x_s"], leaves["y_s"], kernel=kernel(leaves), solve_dtype=torch.float64, **options)
    primal = ssdd_ext.fit(leaves["x_s"], leaves["y_s"], solve_dtype=torch.float64, **options)
    assert plain.alpha.dtype == torch.float32
    assert fitted.alpha.dtype == fitted.x_s.dtype == primal.weights.dtype == torch.float64
    for one in (plain, fitted, primal):
        assert one.predict(leaves["x_q"]).dtype == torch.float32
        assert one.predict(leaves["x_q"].to(torch.bfloat16)).dtype == torch.float32
