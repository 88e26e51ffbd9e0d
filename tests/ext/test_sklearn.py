"""The estimators of ssdd_ext.sklearn pass scikit-learn's checks and agree with its estimators to rounding."""

import importlib.util
import pickle
import sys

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.kernel_ridge import KernelRidge as TheirKernelRidge
from sklearn.linear_model import Ridge
from sklearn.linear_model import RidgeCV as TheirRidgeCV
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_predict
from sklearn.utils.estimator_checks import check_estimator

from ssdd_ext import RBF, Linear
from ssdd_ext.sklearn import KernelRidge, KernelRidgeCV, RidgeCV

X, y = make_regression(n_features=10, noise=5.0, random_state=0)
Y = np.stack([y, np.sin(X[:, 0]) * 20, X[:, 1] ** 2], 1)
WIDE = np.random.default_rng(1).normal(size=(30, 50)) + 0.5
WEIGHTS = np.random.default_rng(2).integers(0, 4, len(X)).astype(float)
KERNELS = {
    "linear": {},
    "rbf": {"gamma": 0.05},
    "poly": {"gamma": 0.1, "degree": 2, "coef0": 0.5},
    "polynomial": {},
    "laplacian": {"gamma": 0.05},
    "cosine": {},
}


# Checks that skip themselves: one needs a variable of the environment, two need pandas.
SKIPPED = {"check_array_api_input"}
if importlib.util.find_spec("pandas") is None:
    SKIPPED |= {"check_regressor_data_not_an_array", "check_sample_weights_pandas_series"}


def close(got, expected, rtol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize(
    "estimator",
    [
        KernelRidge(),
        KernelRidge(kernel="rbf", fit_intercept=True),
        KernelRidge(kernel="precomputed"),
        KernelRidgeCV(),
        KernelRidgeCV(kernel="rbf", fit_intercept=True, cv=3, param_grid={"gamma": [0.1, 1.0]}),
        RidgeCV(),
        RidgeCV(cv=3),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the kernel matrix")
def test_check_estimator(estimator):
    """No check is expected to fail."""
    results = check_estimator(estimator, on_fail="raise", on_skip=None)
    skipped = {r["check_name"] for r in results if r["status"] != "passed"}
    assert len(results) > 50 and skipped <= SKIPPED


# --- the tests of sklearn.kernel_ridge, and agreement with it --------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("data", ["tall", "wide"])
def test_agrees_with_kernel_ridge(kernel, data):
    x, targets = (X, Y) if data == "tall" else (WIDE, Y[:30])
    weights = WEIGHTS[: len(x)]
    for given in ({}, {"sample_weight": weights}, {"sample_weight": 2.0}):
        ours = KernelRidge(0.7, kernel=kernel, **KERNELS[kernel]).fit(x, targets, **given)
        theirs = TheirKernelRidge(alpha=0.7, kernel=kernel, **KERNELS[kernel]).fit(x, targets, **given)
        close(ours.dual_coef_, theirs.dual_coef_, 1e-8)
        close(ours.predict(x + 0.1), theirs.predict(x + 0.1))
        assert ours.score(x, targets) == pytest.approx(theirs.score(x, targets))
    flat = KernelRidge(0.7, kernel=kernel).fit(x, targets[:, 0])
    assert flat.dual_coef_.shape == (len(x),) and flat.predict(x[:4]).shape == (4,) and flat.intercept_ == 0.0


def test_agrees_for_one_ridge_per_target():
    alpha = [0.1, 3.0, 0.1]
    for kernel in ("linear", "rbf"):
        ours = KernelRidge(alpha, kernel=kernel).fit(X, Y, sample_weight=WEIGHTS)
        theirs = TheirKernelRidge(alpha=alpha, kernel=kernel).fit(X, Y, sample_weight=WEIGHTS)
        close(ours.predict(X), theirs.predict(X))
        close(ours.dual_coef_, theirs.dual_coef_, 1e-8)


@pytest.mark.parametrize("container", [scipy.sparse.csr_array, scipy.sparse.csc_array, scipy.sparse.csr_matrix])
def test_sparse_samples(container):
    expected = Ridge(alpha=1, fit_intercept=False).fit(X, y).predict(X)
    ours = KernelRidge().fit(container(X), y)
    close(ours.predict(container(X)), expected)
    close(ours.predict(X), expected)
    close(KernelRidge().fit(X, y).predict(container(X)), expected)
    close(KernelRidge(kernel="rbf").fit(container(X), y).predict(X), KernelRidge(kernel="rbf").fit(X, y).predict(X))


def test_a_singular_matrix_has_the_solution_of_least_norm():
    expected = Ridge(alpha=0, fit_intercept=False).fit(X, y).predict(X)
    close(KernelRidge(alpha=0).fit(X, y).predict(X), expected)
    twice = np.repeat(X[:20], 2, 0)
    model = KernelRidge(alpha=0, kernel="rbf")
    with pytest.warns(UserWarning, match="alpha=0 is singular"):
        model.fit(twice, y[:20].repeat(2))
    close(model.predict(X[:20]), y[:20], 1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf", "poly", "cosine"])
def test_precomputed(kernel):
    k = pairwise_kernels(X, X, metric=kernel)
    before = k.copy()
    expected = KernelRidge(kernel=kernel, fit_intercept=True).fit(X, y, sample_weight=WEIGHTS).predict(X)
    close(KernelRidge(kernel="precomputed", fit_intercept=True).fit(k, y, sample_weight=WEIGHTS).predict(k), expected)
    assert np.array_equal(k, before)


def test_multi_output_is_column_by_column():
    pairs = np.array([y, y]).T
    close(KernelRidge(kernel="linear").fit(X, pairs).predict(X), Ridge(1, fit_intercept=False).fit(X, pairs).predict(X))
    single = KernelRidge().fit(X, y).predict(X)
    close(KernelRidge().fit(X, pairs).predict(X), np.array([single, single]).T)


def test_callables_and_kernel_objects():
    expected = KernelRidge(kernel="rbf", gamma=0.125).fit(X, y).predict(X[:9])
    close(KernelRidge(kernel=RBF(2.0)).fit(X, y).predict(X[:9]), expected)

    def rbf(a, b, gamma):
        return np.exp(-gamma * ((a - b) ** 2).sum())

    close(KernelRidge(kernel=rbf, kernel_params={"gamma": 0.125}).fit(X, y).predict(X[:9]), expected)
    scaled = KernelRidge(0.5, kernel=Linear(2.0, 3.0)).fit(X, y).predict(X)
    close(scaled, KernelRidge(0.5, kernel="poly", degree=1, gamma=2.0, coef0=3.0).fit(X, y).predict(X))


# --- intercept, dtypes, life cycle -----------------------------------------------------------------------


@pytest.mark.parametrize("x", [X, WIDE], ids=["tall", "wide"])
def test_the_intercept_is_that_of_ridge(x):
    targets, weights = Y[: len(x)] + 100.0, WEIGHTS[: len(x)]
    expected = Ridge(alpha=2.0).fit(x, targets, weights)
    for kernel, samples in (("linear", x), ("poly", x), ("precomputed", x @ x.T)):
        ours = KernelRidge(2.0, kernel=kernel, degree=1, gamma=1.0, coef0=0.0, fit_intercept=True)
        ours.fit(samples, targets, weights)
        close(ours.intercept_, expected.intercept_)
        close(ours.predict(samples), expected.predict(x))
        np.testing.assert_allclose(ours.dual_coef_.sum(0), 0, atol=1e-8 * np.abs(ours.dual_coef_).max())


def test_float32_samples_are_computed_in_float32():
    x = X.astype(np.float32)
    for kernel in ("linear", "rbf"):
        ours = KernelRidge(kernel=kernel).fit(x, y)
        assert ours.dual_coef_.dtype == ours.predict(x).dtype == np.float32
        close(ours.predict(x), KernelRidge(kernel=kernel).fit(X, y).predict(X), 1e-4)
        assert ours.predict(X).dtype == np.float64


def test_rows_in_reverse_order():
    """numpy calls one row contiguous although its stride is negative, and torch refuses that stride."""
    model = KernelRidge(kernel="rbf").fit(X[::-1], y[::-1])
    np.testing.assert_allclose(model.predict(X[:3][::-1])[::-1], model.predict(X[:3]))
    np.testing.assert_allclose(model.predict(X[:1][::-1]), model.predict(X[:1]))


def test_pickle_and_clone():
    for model in (KernelRidge(kernel=RBF(2.0)), KernelRidgeCV(kernel="rbf"), RidgeCV()):
        fitted = clone(model).fit(X, Y)
        assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), fitted.predict(X))


@pytest.mark.parametrize(
    "model, given, error",
    [
        (KernelRidge(kernel="sigmoid"), {}, "kernel: 'sigmoid' is not positive definite"),
        (KernelRidge(kernel="matern"), {}, "kernel: expected one of linear, rbf"),
        (KernelRidge(kernel="precomputed"), {}, "X: expected a square Gram matrix"),
        (KernelRidge(-1.0), {}, "alpha: expected finite numbers >= 0, got -1"),
        (KernelRidge([1.0, 2.0]), {}, "alpha: expected 1 number or 3"),
        (KernelRidge("1e"), {}, "alpha: expected a number or a list"),
        (KernelRidge(), {"sample_weight": -WEIGHTS}, "sample_weight: expected numbers >= 0"),
        (KernelRidge(), {"sample_weight": 0 * WEIGHTS}, "sample_weight: expected at least one"),
        (KernelRidge(), {"sample_weight": WEIGHTS[1:]}, "sample_weight: expected one number, or 100"),
        (KernelRidgeCV([0.0, 1.0]), {}, "alphas: expected finite numbers > 0"),
        (KernelRidgeCV(param_grid={"alpha": [1.0]}), {}, r"param_grid: .* got \['alpha'\]"),
    ],
)
def test_arguments_are_checked(model, given, error):
    with pytest.raises((TypeError, ValueError), match=error):
        model.fit(X, Y, **given)


def test_a_missing_scikit_learn_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "ssdd_ext.sklearn")
    with pytest.raises(ModuleNotFoundError, match="ssdd_ext.sklearn needs scikit-learn, which is not installed: pip"):
        importlib.import_module("ssdd_ext.sklearn")


def test_an_old_scikit_learn_is_an_error_that_says_so(monkeypatch):
    monkeypatch.delattr("sklearn.utils.validation.validate_data")
    monkeypatch.delitem(sys.modules, "ssdd_ext.sklearn")
    with pytest.raises(ImportError, match=r"needs scikit-learn 1.6 or later, this is \d.*: pip install --upgrade"):
        importlib.import_module("ssdd_ext.sklearn")


# --- the choice of the ridge -----------------------------------------------------------------------------

ALPHAS = [1e-3, 0.1, 1.0, 10.0, 100.0]


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("x", [X, WIDE], ids=["tall", "wide"])
def test_agrees_with_ridge_cv(x, fit_intercept):
    targets, weights = Y[: len(x)] + 3.0, WEIGHTS[: len(x)] + 0.5
    for given in ({}, {"sample_weight": weights}):
        for several in (False, True):
            options = {"fit_intercept": fit_intercept, "alpha_per_target": several}
            ours, theirs = (kind(ALPHAS, **options).fit(x, targets, **given) for kind in (RidgeCV, TheirRidgeCV))
            assert np.array_equal(ours.alpha_, theirs.alpha_)
            close(ours.coef_, theirs.coef_, 1e-8)  # scikit-learn's own error depends on its version
            close(ours.intercept_, theirs.intercept_, 1e-8)
            close(ours.predict(x), theirs.predict(x))
            close(ours.best_score_, theirs.best_score_)
    ours, theirs = (kind(ALPHAS, scoring="r2").fit(x, targets) for kind in (RidgeCV, TheirRidgeCV))
    assert ours.alpha_ == theirs.alpha_ and ours.best_score_ == pytest.approx(theirs.best_score_)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weights", [None, WEIGHTS[:14]], ids=["plain", "weighted"])
def test_leave_one_out_is_that_of_refits(kernel, fit_intercept, weights):
    x, targets = X[:14], Y[:14] + 2.0
    model = KernelRidgeCV(ALPHAS, kernel=kernel, fit_intercept=fit_intercept).fit(x, targets, weights)
    scores = []
    for alpha in ALPHAS:
        refit = KernelRidge(alpha, kernel=kernel, fit_intercept=fit_intercept)
        given = {} if weights is None else {"params": {"sample_weight": weights}}
        p = cross_val_predict(refit, x, targets, cv=LeaveOneOut(), **given)
        scores.append(-np.average((p - targets) ** 2, axis=0, weights=weights).mean())
    close(model.cv_results_["mean_test_score"], np.array(scores))
    assert model.alpha_ == ALPHAS[int(np.argmax(scores))] and model.best_score_ == pytest.approx(max(scores))


def test_k_fold_and_kernel_parameters_are_those_of_a_grid_search():
    grid = {"gamma": [0.01, 0.1]}
    options = {"cv": 4, "scoring": "neg_mean_squared_error"}
    theirs = GridSearchCV(TheirKernelRidge(kernel="rbf"), {"alpha": ALPHAS, **grid}, **options).fit(X, Y)
    for scoring in (None, "neg_mean_squared_error"):
        ours = KernelRidgeCV(ALPHAS, kernel="rbf", param_grid=grid, cv=4, scoring=scoring).fit(X, Y)
        assert ours.best_score_ == pytest.approx(theirs.best_score_)
        assert {"alpha": ours.alpha_, "gamma": ours.best_params_["gamma"]} == theirs.best_params_
        close(ours.predict(X), theirs.predict(X))
        scores = {(p["alpha"], p["gamma"]): s for p, s in zip(*ours.cv_results_.values(), strict=True)}
        expected = zip(theirs.cv_results_["params"], theirs.cv_results_["mean_test_score"], strict=True)
        for params, score in expected:
            assert scores[params["alpha"], params["gamma"]] == pytest.approx(score)


def test_kernels_are_compared_and_precomputed_ones_are_split():
    both = KernelRidgeCV(ALPHAS, param_grid=[{"kernel": ["linear"]}, {"kernel": ["rbf"], "gamma": [0.1]}]).fit(X, y)
    alone = [KernelRidgeCV(ALPHAS).fit(X, y), KernelRidgeCV(ALPHAS, kernel="rbf", gamma=0.1).fit(X, y)]
    assert both.best_params_["kernel"] == "linear"
    assert both.best_score_ == max(m.best_score_ for m in alone)
    k = pairwise_kernels(X, metric="rbf", gamma=0.1)
    for cv in (None, 3):
        expected = KernelRidgeCV(ALPHAS, kernel="rbf", gamma=0.1, cv=cv, fit_intercept=True).fit(X, y)
        got = KernelRidgeCV(ALPHAS, kernel="precomputed", cv=cv, fit_intercept=True).fit(k, y)
        assert got.alpha_ == expected.alpha_ and got.best_score_ == pytest.approx(expected.best_score_)
        close(got.predict(k), expected.predict(X))


def test_one_ridge_per_target_of_a_kernel():
    model = KernelRidgeCV(ALPHAS, kernel="rbf", alpha_per_target=True).fit(X, Y)
    single = [KernelRidgeCV(ALPHAS, kernel="rbf").fit(X, Y[:, i]) for i in range(3)]
    assert list(model.alpha_) == [m.alpha_ for m in single]
    close(model.predict(X), np.stack([m.predict(X) for m in single], 1))
