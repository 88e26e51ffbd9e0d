"""float32 against float64, beside PyTorch's float32 Cholesky formulation on the same fresh problems.

Two guarantees per row, for the value and for every gradient, over new problems (fixed seeds, new per row):
the median error is at most 1.2 times and the worst at most 3 times Cholesky's, and every error stays below
c * g * kappa * u. Errors are relative, in the Frobenius norm, the worst matrix of a batch.

g and c come from first-order perturbation (Higham, Accuracy and Stability, 7.1 and 10.1). A relative error eta of
A = K_ss + lambda I moves alpha = A^-1 Y by at most kappa eta |alpha|, and so P = K_qs alpha by kappa eta g |P| with
g = |K_qs|_2 |alpha| / |P|: how much of alpha cancels in the predictions, 1 if nothing does. The same error of K_qs
adds eta g |P|, and kappa >= 1. The last test here checks eta <= 4 u for the factor. So c = 8 for the value, and
three times that for a gradient, the product of two solutions (alpha and U = A^-1 K_sq P_bar) through one more product.
"""

from collections import defaultdict
from statistics import median

import pytest
import torch

import ssdd_ext
from ssdd_ext.testing import TABLE, condition, draw, gradients, mse, predictions, relative_error

U = 2.0**-24
PROBLEMS = 24
# The medians of two samples of 24 small problems differ by a quarter by chance, those of large ones by little.
SMALL_PROBLEMS, LARGE_PROBLEMS = 64, 10
C_VALUE, C_GRADIENT = 8.0, 24.0
# Errors of a few roundings of the result are equivalent: which one is smaller is chance.
ROUNDING = 3 * U

# kappa * u > 1: no float32 formulation has a digit there, and Cholesky breaks down. test_krr.py tests it in float64.
HOPELESS = {"tall_tiny_ridge"}
# test_krr_mse runs these; and where the elements are in memory changes no error.
ELSEWHERE = {"large", "large_tall"}
ROWS = [
    name
    for name, row in TABLE.items()
    if row.q and 0 not in row.batch and row.hyper == "numbers" and row.layout == "contiguous"
    if name not in HOPELESS | ELSEWHERE
]
HYPER = {
    kernel: [n for n, row in TABLE.items() if row.hyper != "numbers" and row.kernel.name == kernel]
    for kernel in ("linear", "rbf")
}
MSE_ROWS = ["krr_st", "frepo", "rfad", "krr_st_tall", "large", "large_tall", "odd_rbf", "blocks_rbf", "batch_5_linear"]


def krr(inputs, backend):
    i = inputs
    return ssdd_ext.krr(i.x_s, i.y_s, i.x_q, kernel=i.kernel, ridge=i.ridge, backend=backend, on_failure="nan")


def krr_mse(inputs, backend):
    i = inputs
    keywords = {"kernel": i.kernel, "ridge": i.ridge, "backend": backend, "on_failure": "nan"}
    return ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, **keywords)


def results(value, inputs):
    return {"value": value} | gradients(value, inputs)


@torch.no_grad()
def cancellation(exact):
    """Return g >= 1 of the module's docstring, the largest of a batch. The Frobenius norm of K_qs would make it
    larger."""
    k_ss = ssdd_ext.gram(exact.x_s, kernel=exact.kernel)
    alpha = ssdd_ext.cholesky_solve(k_ss, exact.y_s, ridge=exact.ridge, on_failure="nan")
    k_qs = ssdd_ext.gram(exact.x_q, exact.x_s, kernel=exact.kernel)
    # Its 2-norm, from the smaller of the two squares: all singular values take several times as long.
    square = k_qs @ k_qs.mT if k_qs.shape[-2] <= k_qs.shape[-1] else k_qs.mT @ k_qs
    largest, norm = torch.linalg.eigvalsh(square)[..., -1].sqrt(), torch.linalg.matrix_norm
    return (largest * norm(alpha) / norm(predictions(exact))).max().clamp(min=1).item()


BACKENDS = ["native", "torch"]
# The reference is Cholesky's formulation, so its errors are the same numbers: these rows tell that it stays so.
OF_THE_REFERENCE = {"krr_st", "krr_st_tall", "ill_linear", "ill_rbf", "rfad", "tall_linear", "odd_rbf"}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def measure(row, call, formula, backends):
    """Return, per backend and output: our errors, Cholesky's, and ours in units of g * kappa * u; one entry per
    problem. All backends meet the same problems, and the native one more of them if they are small."""
    ours, theirs, units = (defaultdict(lambda: defaultdict(list)) for _ in range(3))
    many = "native" in backends and row.s <= 70
    for index in range(SMALL_PROBLEMS if many else LARGE_PROBLEMS if row.s >= 90 else PROBLEMS):
        inputs = draw(row, index, torch.float32)
        exact = inputs.to(torch.float64)
        kappa, g = condition(exact), cancellation(exact)
        expected = results(formula(exact), exact)
        usual = results(formula(inputs, "cholesky"), inputs)
        for backend in backends if index < PROBLEMS else ["native"]:
            for name, got in results(call(inputs, backend), inputs).items():
                ours[backend][name].append(relative_error(got, expected[name]))
                theirs[backend][name].append(relative_error(usual[name], expected[name]))
                # A single number may be near zero, where no relative error is bounded; a matrix is not.
                if kappa * U < 0.05 and got.numel() > 1:
                    units[backend][name].append(ours[backend][name][-1] / (g * kappa * U))
    return ours, theirs, units


def hold(label, ours, theirs, most=1.2):
    ratio, worst = median(ours) / max(median(theirs), 1e-30), max(ours) / max(*theirs, 1e-30)
    print(f"{label}: median {median(ours):.1e}, {ratio:.2f} of Cholesky's; worst {max(ours):.1e}, {worst:.2f}")
    assert median(ours) <= max(most * median(theirs), ROUNDING), f"{label}: median is {ratio:.2f} of Cholesky's"
    assert max(ours) <= max(3 * max(theirs), 3 * ROUNDING), f"{label}: worst case is {worst:.2f} of Cholesky's"


def hold_row(name, call, formula, backends=None, most=1.2):
    backends = backends or (BACKENDS if name in OF_THE_REFERENCE else ["native"])
    ours, theirs, units = measure(TABLE[name], call, formula, backends)
    for backend in backends:
        assert ours[backend]
        for output in ours[backend]:
            label = f"{name}, {backend}, {output}"
            # The loss is one number: its error is chance, the errors of its gradients are not.
            if not (formula is mse and output == "value"):
                hold(label, ours[backend][output], theirs[backend][output], most)
            allowed = C_VALUE if output == "value" else C_GRADIENT
            largest = max(units[backend][output], default=0)
            assert largest <= allowed, f"{label}: {largest:.1f} g kappa u"


@pytest.mark.parametrize("name", ROWS)
def test_krr(name):
    hold_row(name, krr, predictions)


@pytest.mark.parametrize("name", ["krr_st", "krr_st_tall", "rfad", "ill_linear", "ill_rbf", "one_feature_rbf"])
def test_planned_krr(name):
    """Test the same products in another order, with fewer draws and a wider tolerance for chance."""
    hold_row(name, krr, predictions, ["planned"], most=1.5)


@pytest.mark.parametrize("name", MSE_ROWS)
def test_krr_mse(name):
    hold_row(name, krr_mse, mse)


@pytest.mark.parametrize("kernel", HYPER)
def test_gradients_of_hyper_parameters(kernel, backend):
    """One number per problem, a sum that cancels: tested over all rows together, relative to the row's typical size."""
    ours, theirs = defaultdict(list), defaultdict(list)
    for name in HYPER[kernel]:
        drawn = [draw(TABLE[name], index, torch.float32) for index in range(PROBLEMS)]
        exact = [i.to(torch.float64) for i in drawn]
        expected = [gradients(predictions(e), e) for e in exact]
        for output in set(expected[0]) - {"x_s", "y_s", "x_q"}:
            size = torch.stack([w[output] for w in expected]).square().mean().sqrt()
            for found, call in ((ours, krr), (theirs, lambda i, _: predictions(i, "cholesky"))):
                got = [gradients(call(i, backend), i)[output] for i in drawn]
                errors = [((g - w[output]).abs() / size).flatten() for g, w in zip(got, expected, strict=True)]
                found[output] += torch.cat(errors).tolist()
    assert set(ours) == ({"scale", "bias", "ridge"} if kernel == "linear" else {"lengthscale", "ridge"})
    for output in ours:
        hold(f"{kernel}, {output}", ours[output], theirs[output])


def test_cholesky_has_the_backward_error_of_lapack(backend):
    """|A - L L^T| / |A|, which does not depend on the conditioning."""
    generator = torch.Generator().manual_seed(3)
    for order in (8, 33, 64, 100, 200):
        ours, theirs = [], []
        for _ in range(PROBLEMS):
            x = torch.randn(order, order // 2, generator=generator)
            a = x @ x.mT + 1e-2 * torch.eye(order)
            for errors, factor in ((ours, ssdd_ext.cholesky(a, backend=backend)), (theirs, torch.linalg.cholesky(a))):
                errors.append(relative_error(factor.double() @ factor.double().mT, a))
        hold(f"order {order}", ours, theirs)
        assert max(ours) < 4 * U
