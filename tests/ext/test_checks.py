"""Bad input of every kind raises a TypeError or ValueError that names the argument, before anything runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, FactorizationError, Linear, Polynomial, Ridge
from ssdd_ext.testing import relative_error

GOOD = {
    "x_s": torch.linspace(-1, 1, 12).reshape(4, 3),
    "y_s": torch.linspace(0, 1, 8).reshape(4, 2),
    "x_q": torch.linspace(-2, 1, 15).reshape(5, 3),
    "y_q": torch.linspace(1, 2, 10).reshape(5, 2),
    "k_ss": torch.eye(4) + 0.1,
    "k_qs": torch.linspace(0, 1, 20).reshape(5, 4),
    "a": torch.eye(4) + 0.1,
    "y": torch.linspace(0, 1, 8).reshape(4, 2),
    "x": torch.linspace(-1, 1, 12).reshape(4, 3),
    "z": torch.linspace(-2, 1, 15).reshape(5, 3),
}
CALLS = {
    ssdd_ext.gram: ("x", "z"),
    ssdd_ext.cholesky: ("a",),
    ssdd_ext.cholesky_solve: ("a", "y"),
    ssdd_ext.krr: ("x_s", "y_s", "x_q"),
    ssdd_ext.krr_mse: ("x_s", "y_s", "x_q", "y_q"),
    ssdd_ext.krr_from_gram: ("k_ss", "y_s", "k_qs"),
    ssdd_ext.krr_mse_from_gram: ("k_ss", "y_s", "k_qs", "y_q"),
    ssdd_ext.fit: ("x_s", "y_s"),
}
WITH_KERNEL = (ssdd_ext.gram, ssdd_ext.krr, ssdd_ext.krr_mse, ssdd_ext.fit)
WITH_RIDGE = tuple(call for call in CALLS if call not in (ssdd_ext.gram, ssdd_ext.cholesky))
EACH_ARGUMENT = [(call, name) for call, names in CALLS.items() for name in names]


def call_id(value):
    return getattr(value, "__name__", None)


def run(call, backend, *, names=None, **changed):
    """Run `call` on good arguments, some of them changed."""
    arguments = {name: GOOD[name] for name in names or CALLS[call]}
    return call(**(arguments | {"backend": backend} | changed))


@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_the_good_arguments_are_good(call, backend):
    run(call, backend)


NOT_A_TENSOR = {
    "numpy": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "number": lambda t: 1.0,
    "none": lambda t: None,
}
NOT_REAL = {
    "int64": lambda t: t.long(),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: t.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", [*NOT_A_TENSOR, *NOT_REAL])
@pytest.mark.parametrize("call, name", EACH_ARGUMENT, ids=call_id)
def test_wrong_types(call, name, kind, backend):
    value = (NOT_A_TENSOR | NOT_REAL)[kind](GOOD[name])
    if (kind, name) == ("none", "z"):  # means x itself
        assert run(call, backend, z=None).shape == (4, 4)
        return
    with pytest.raises(TypeError, match=rf"^{name}: expected"):
        run(call, backend, **{name: value})


@pytest.mark.parametrize("call, name", EACH_ARGUMENT, ids=call_id)
def test_too_few_dimensions(call, name, backend):
    with pytest.raises(ValueError, match=rf"^{name}: expected at least 2 dimensions.*\(4,\)"):
        run(call, backend, **{name: torch.ones(4)})


@pytest.mark.parametrize("call, name", EACH_ARGUMENT, ids=call_id)
def test_another_device(call, name, backend):
    if len(CALLS[call]) == 1:
        call = ssdd_ext.cholesky_solve
    with pytest.raises(ValueError, match=r"expected device (cpu|meta).*got (cpu|meta)") as caught:
        run(call, backend, **{name: GOOD[name].to("meta")})
    assert str(caught.value).split(":")[0] in CALLS[call]


@pytest.mark.parametrize("call, name", EACH_ARGUMENT, ids=call_id)
def test_float64_is_not_mixed_silently(call, name, backend):
    if len(CALLS[call]) == 1:
        call = ssdd_ext.cholesky_solve
    for other in (torch.float32, torch.bfloat16):
        changed = {n: GOOD[n].to(other) for n in CALLS[call]} | {name: GOOD[name].double()}
        with pytest.raises(TypeError, match=r"expected float64") as caught:
            run(call, backend, **changed)
        assert str(caught.value).split(":")[0] in CALLS[call]


WRONG_SHAPES = [
    (ssdd_ext.gram, "z", (5, 4)),
    (ssdd_ext.cholesky, "a", (4, 3)),
    (ssdd_ext.cholesky_solve, "a", (3, 4)),
    (ssdd_ext.cholesky_solve, "y", (5, 2)),
    (ssdd_ext.krr, "y_s", (3, 2)),
    (ssdd_ext.krr, "x_q", (5, 2)),
    (ssdd_ext.krr_mse, "y_q", (5, 3)),
    (ssdd_ext.krr_mse, "y_q", (4, 2)),
    (ssdd_ext.krr_from_gram, "k_ss", (4, 5)),
    (ssdd_ext.krr_from_gram, "k_qs", (5, 3)),
    (ssdd_ext.krr_from_gram, "y_s", (5, 2)),
    (ssdd_ext.krr_mse_from_gram, "y_q", (6, 2)),
    (ssdd_ext.krr_mse_from_gram, "y_q", (5, 1)),
    (ssdd_ext.fit, "y_s", (5, 2)),
]


@pytest.mark.parametrize("call, name, shape", WRONG_SHAPES, ids=lambda v: call_id(v) or str(v))
def test_wrong_shapes_name_what_came(call, name, shape, backend):
    with pytest.raises(ValueError, match=rf"^{name}: expected .*{shape[0]}, {shape[1]}"):
        run(call, backend, **{name: torch.ones(*shape)})


@pytest.mark.parametrize("call", [c for c in CALLS if len(CALLS[c]) > 1], ids=call_id)
def test_batches_that_do_not_broadcast(call, backend):
    first = CALLS[call][0]
    for other in CALLS[call][1:]:
        changed = {first: GOOD[first].expand(2, *GOOD[first].shape), other: GOOD[other].expand(3, *GOOD[other].shape)}
        with pytest.raises(ValueError, match=rf"must broadcast.*{first} \(2,\).*{other} \(3,\)"):
            run(call, backend, **changed)


@pytest.mark.parametrize("call", [c for c in CALLS if "y_s" in CALLS[c]], ids=call_id)
def test_empty_support(call, backend):
    empty = {"x_s": torch.ones(0, 3), "y_s": torch.ones(0, 2), "k_ss": torch.ones(0, 0), "k_qs": torch.ones(5, 0)}
    with pytest.raises(ValueError, match=r"^(x_s|k_ss): expected at least one support point"):
        run(call, backend, **{n: t for n, t in empty.items() if n in CALLS[call]})


def test_empty_matrix_to_solve_with(backend):
    with pytest.raises(ValueError, match="^a: expected at least one row"):
        ssdd_ext.cholesky_solve(torch.ones(0, 0), torch.ones(0, 2), backend=backend)


@pytest.mark.parametrize("call", [ssdd_ext.krr_mse, ssdd_ext.krr_mse_from_gram], ids=call_id)
def test_a_mean_over_nothing_is_refused(call, backend):
    none = {"x_q": torch.ones(0, 3), "k_qs": torch.ones(0, 4), "y_q": torch.ones(0, 2)}
    with pytest.raises(ValueError, match=r"^(x_q|k_qs): expected at least one query point"):
        run(call, backend, **{n: t for n, t in none.items() if n in CALLS[call]})
    with pytest.raises(ValueError, match=r"^y_s: expected at least one target"):
        run(call, backend, y_s=torch.ones(4, 0), y_q=torch.ones(5, 0))


@pytest.mark.parametrize("call, name", EACH_ARGUMENT, ids=call_id)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_check_finite(call, name, value, backend):
    bad = GOOD[name].clone()
    bad[1, 1] = value
    with pytest.raises(ValueError, match=rf"^{name}: expected finite numbers, got 1 NaN or Inf among {bad.numel()}"):
        run(call, backend, **{name: bad, "check_finite": True})
    run(call, backend, check_finite=True)


def test_nan_without_check_finite_is_never_a_number(backend):
    for name in ("x_s", "y_s", "x_q"):
        bad = GOOD[name].clone()
        bad[1, 0] = float("nan")
        result = run(ssdd_ext.krr, backend, **{name: bad, "on_failure": "nan"})
        affected = {"x_s": result, "y_s": result[:, 0], "x_q": result[1]}[name]
        assert affected.isnan().all(), name
    bad = GOOD["x_s"].clone()
    bad[1, 0] = float("nan")
    with pytest.raises(FactorizationError, match="check_finite"):
        run(ssdd_ext.krr, backend, x_s=bad)


# --- options and hyper-parameters -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [Ridge.absolute, Ridge.trace, Ridge.mean_trace], ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [-1e-6, float("nan"), float("inf")])
def test_ridge_numbers_out_of_range(make, value):
    with pytest.raises(ValueError, match=rf"^Ridge\.{make.__name__}: expected a finite number >= 0, got"):
        make(value)


@pytest.mark.parametrize(
    "make, name, values",
    [
        (lambda v: Linear(scale=v), "Linear.scale", [0.0, -1.0, float("nan")]),
        (lambda v: Linear(bias=v), "Linear.bias", [-1e-9, float("inf")]),
        (RBF, "RBF.lengthscale", [0, -2.0, float("nan")]),
    ],
)
def test_kernel_numbers_out_of_range(make, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name}: expected a finite number"):
            make(value)
    for wrong in ("1", None, [1.0], torch.tensor(1), torch.tensor(1j)):
        with pytest.raises(TypeError, match=rf"^{name}: expected"):
            make(wrong)
    make(np.float64(0.5))


@pytest.mark.parametrize("call", WITH_RIDGE, ids=call_id)
def test_a_bare_number_is_no_ridge(call, backend):
    with pytest.raises(TypeError, match=r"^ridge: expected Ridge\.absolute"):
        run(call, backend, ridge=1e-6)


@pytest.mark.parametrize("call", WITH_KERNEL, ids=call_id)
def test_what_is_no_kernel(call, backend):
    for wrong in ("rbf", RBF, None, 1.0):
        with pytest.raises(TypeError, match="^kernel: expected a kernel object"):
            run(call, backend, kernel=wrong)


@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_options_are_named(call, backend):
    with pytest.raises(ValueError, match="^backend: expected one of 'auto', 'native', 'planned', 'torch', got 'cuda'"):
        run(call, "cuda")
    if call is not ssdd_ext.gram:
        with pytest.raises(ValueError, match="^on_failure: expected one of 'raise', 'jitter', 'nan', got 'warn'"):
            run(call, backend, on_failure="warn")
    for wrong in (torch.bfloat16, torch.int32, "float64"):
        with pytest.raises(ValueError, match="^solve_dtype: expected"):
            run(call, backend, solve_dtype=wrong)
    wide = {name: GOOD[name].double() for name in CALLS[call]}
    with pytest.raises(ValueError, match="^solve_dtype: float32 would lose digits"):
        run(call, backend, solve_dtype=torch.float32, **wide)


BAD_TENSORS = {
    "negative ridge": lambda v: {"ridge": Ridge.trace(v)},
    "ridge": lambda v: {"ridge": Ridge.absolute(v)},
    "scale": lambda v: {"kernel": Linear(scale=v)},
    "bias": lambda v: {"kernel": Linear(bias=v)},
    "lengthscale": lambda v: {"kernel": RBF(v)},
}


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("which", BAD_TENSORS)
@pytest.mark.parametrize("call", [ssdd_ext.krr, ssdd_ext.krr_mse], ids=call_id)
def test_a_bad_hyper_parameter_tensor_sets_status(call, which, value, backend):
    """No synchronisation checks a tensor. Its problem, and no other, gets status -1 and NaN."""
    options = BAD_TENSORS[which](torch.tensor([1.0, value, 1.0]))
    options |= {name: GOOD[name].expand(3, *GOOD[name].shape) for name in CALLS[call]}
    result, info = run(call, backend, on_failure="nan", return_info=True, **options)
    assert info.status.tolist() == [0, -1, 0]
    assert result[1].isnan().all() and result[[0, 2]].isfinite().all()
    for on_failure in ("raise", "jitter"):
        if on_failure == "raise":
            with pytest.raises(FactorizationError, match="problem 1 of 3 has a hyper-parameter out of range"):
                run(call, backend, on_failure=on_failure, **options)
        else:
            _, info = run(call, backend, on_failure=on_failure, return_info=True, **options)
            assert info.status.tolist() == [0, -1, 0]


def test_hyper_parameters_broadcast_over_the_batch_only(backend):
    for options in ({"kernel": Linear(scale=torch.ones(3))}, {"ridge": Ridge.trace(torch.ones(3))}):
        batch = {n: GOOD[n].expand(2, *GOOD[n].shape) for n in CALLS[ssdd_ext.krr]}
        with pytest.raises(ValueError, match=r"must broadcast.*hyper-parameter"):
            run(ssdd_ext.krr, backend, **batch, **options)
    with pytest.raises(TypeError, match="Ridge.trace"):
        Ridge.trace(torch.tensor(1))


def test_hyper_parameter_on_another_device(backend):
    with pytest.raises(ValueError, match="expected device cpu"):
        run(ssdd_ext.krr, backend, kernel=RBF(torch.ones(2, device="meta")))


# --- sizes ----------------------------------------------------------------------------------------------


def test_products_past_addressable_sizes_are_refused(backend):
    """Tensors expanded from one number are refused by arithmetic, not by a failed allocation."""
    one = torch.ones(1, 1)
    support, target, query = one.expand(2**26, 2), one.expand(2**26, 1), one.expand(2**26, 2)
    with pytest.raises(ValueError, match=r"S=67108864 x .*elements are more than"):
        ssdd_ext.krr(support, target, query, backend=backend)
    with pytest.raises(ValueError, match="elements are more than"):
        ssdd_ext.gram(support, backend=backend)
    with pytest.raises(ValueError, match="elements are more than"):
        ssdd_ext.gram(support, query, kernel=RBF(1.0), backend=backend)


def test_sizes_past_32_bits_work(backend):
    """B * S * D = 2^32 + 2^17 numbers, 2^16 of them stored: one row of features over the batch, a tiny solve each."""
    x = torch.linspace(-1, 1, 2**16).reshape(1, 2**16) / 256
    batch = 2**16 + 2
    k = ssdd_ext.gram(x.expand(2, 1, 2**16), backend=backend)
    assert relative_error(k, (x.double() @ x.double().mT).expand(2, 1, 1)) < 1e-5
    a = torch.full((1, 1), 4.0).expand(batch, 1, 1)
    y = torch.linspace(0, 1, 2**15 + 1).expand(1, 2**15 + 1)
    # C * B = 2^31 + ...: the targets of the whole batch are one expanded row, and one column of the result is computed.
    solved = ssdd_ext.cholesky_solve(a, y[:, -2:].expand(batch, 1, 2), backend=backend)
    assert torch.allclose(solved, y[:, -2:].expand(batch, 1, 2) / 4)


def test_strides_past_32_bits_work(backend):
    """Rows are 2^31 elements apart in a sparse mapping, so offsets need 64 bits."""
    storage = torch.empty(3 * 2**31 + 8, dtype=torch.bfloat16)
    x = torch.as_strided(storage, (3, 4), (2**31, 1))
    x.copy_(torch.linspace(-1, 1, 12).reshape(3, 4))
    y = torch.ones(3, 2)
    dense = x.contiguous()
    expected = ssdd_ext.krr(dense, y, dense, ridge=Ridge.trace(0.1), backend=backend)
    assert torch.equal(ssdd_ext.krr(x, y, x, ridge=Ridge.trace(0.1), backend=backend), expected)


# --- messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (8, 4, 5)], ids=str)
def test_images_as_x_s_are_an_error_about_x_s(shape, backend):
    x, y = torch.ones(shape), torch.ones(8, 2)
    with pytest.raises(ValueError, match=r"^x_s: expected features .*; if each of its 8 points .*x_s.flatten\(1\)"):
        ssdd_ext.krr(x, y, x, backend=backend)
    flat = x.flatten(1) + torch.arange(8)[:, None]
    assert ssdd_ext.krr(flat, y, flat, ridge=Ridge.absolute(0.1), backend=backend).shape == (8, 2)


@pytest.mark.parametrize("matrix", [-torch.eye(3), torch.ones(3, 3)], ids=["indefinite", "singular"])
def test_a_failure_names_its_call_and_the_tool_for_its_matrix(matrix, backend):
    y, k_qs = torch.ones(3, 2), torch.ones(1, 3)
    options = {"ridge": Ridge.absolute(0.0), "backend": backend}
    x = torch.ones(3, 4)
    calls = {
        "krr_from_gram": lambda: ssdd_ext.krr_from_gram(matrix, y, k_qs, **options),
        "krr_mse_from_gram": lambda: ssdd_ext.krr_mse_from_gram(matrix, y, k_qs, y[:1], **options),
        "cholesky_solve": lambda: ssdd_ext.cholesky_solve(matrix, y, **options),
        "cholesky": lambda: ssdd_ext.cholesky(matrix, backend=backend),
        "fit": lambda: ssdd_ext.fit(x, y, **options),
        "log_marginal_likelihood": lambda: ssdd_ext.log_marginal_likelihood(x, y, **options),
    }
    for name, call in calls.items():
        with pytest.raises(FactorizationError, match=f"^{name}: .*singular .*lstsq.*indefinite .*torch.linalg.solve"):
            call()


@pytest.mark.parametrize("call", CALLS, ids=call_id)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_meta_tensors_give_shapes(call, backend):
    """Those of the same call on numbers, with every failure mode and with check_finite."""
    expected = run(call, "torch", **({} if call is ssdd_ext.gram else {"on_failure": "nan"}))
    for options in ({}, {"check_finite": True}):
        got = run(call, backend, **{name: GOOD[name].to("meta") for name in CALLS[call]}, **options)
        a, b = (got.weights, expected.weights) if call is ssdd_ext.fit else (got, expected)
        assert a.is_meta and a.shape == b.shape and a.dtype == b.dtype


def test_a_checkout_without_its_core_says_how_to_build_it(tmp_path):
    source = Path(ssdd_ext.__file__).parent
    shutil.copytree(source, tmp_path / "ssdd_ext", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", "import ssdd_ext"], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": ""}
    )
    assert done.returncode == 1 and "circular" not in done.stderr
    assert "ssdd_ext: the native core is not built" in done.stderr and "make dev" in done.stderr


@pytest.mark.parametrize("backend", ("auto", "planned", "torch"))
def test_overflow_and_nan_are_named(backend):
    x, y = torch.ones(5, 3), torch.ones(5, 2)
    large, nan = x * 1e25, x.clone()
    nan[2, 1] = float("nan")
    for call in (
        lambda x: ssdd_ext.krr(x, y, x, backend=backend),
        lambda x: ssdd_ext.krr_mse(x, y, x, y, backend=backend),
        lambda x: ssdd_ext.fit(x, y, backend=backend),
        lambda x: ssdd_ext.krr_cross_entropy(x, y, x, torch.zeros(5, dtype=torch.int64), backend=backend),
        lambda x: ssdd_ext.log_marginal_likelihood(x, y, backend=backend),
    ):
        with pytest.raises(ssdd_ext.FactorizationError, match=r"x_s is too large for float32: .*1.0e\+25.*scale it"):
            call(large)
        with pytest.raises(ssdd_ext.FactorizationError, match="x_s holds NaN or Inf"):
            call(nan)
    with pytest.raises(ssdd_ext.FactorizationError, match="a holds NaN or Inf"):
        ssdd_ext.cholesky_solve(nan[:3], y[:3], backend=backend)
    wide = x.double() * 1e200
    with pytest.raises(ssdd_ext.FactorizationError, match=r"x_s is too large for float64: .*1.0e\+200.*scale it \("):
        ssdd_ext.krr(wide, y.double(), wide, backend=backend)
    indefinite = torch.diag(torch.tensor([1.0, -1.0]))
    with pytest.raises(ssdd_ext.FactorizationError, match="not positive definite: pivot 2 of 2"):
        ssdd_ext.cholesky_solve(indefinite, y[:2], backend=backend)
    assert ssdd_ext.krr(large, y, large, solve_dtype=torch.float64, backend=backend).isfinite().all()


@pytest.mark.parametrize("backend", ssdd_ext.checks.BACKENDS)
@pytest.mark.parametrize(
    "kernel, ridge, named",
    [
        (Linear(1e40), Ridge.trace(torch.tensor(1e-3)), r"Linear.scale = 1e\+40: expected .* float32; .*float64"),
        (Linear(1e-60), Ridge.trace(1e-3), r"Linear.scale = 1e-60: expected .* the range of float32"),
        (Linear(bias=1e40), Ridge.trace(1e-3), r"Linear.bias = 1e\+40: expected"),
        (RBF(1.0), Ridge.absolute(1e40), r"Ridge.absolute = 1e\+40: expected"),
        (
            Polynomial(30, 1e6),
            Ridge.trace(1e-6),
            r"the kernel Polynomial\(.*30.* overflows float32 on these points; .*64",
        ),
        (Linear(1e30), Ridge.trace(1e20), r"lambda of Ridge.trace\(1e\+20\) overflows float32; use a smaller value"),
    ],
    ids=["large scale", "small scale", "bias", "absolute", "polynomial", "ridge"],
)
def test_a_kernel_that_overflows_is_named(kernel, ridge, named, backend):
    x, y = torch.arange(15.0).reshape(5, 3), torch.ones(5, 2)
    for call in (ssdd_ext.krr, lambda x, y, q, **how: ssdd_ext.fit(x, y, **how).predict(q)):
        with pytest.raises(ssdd_ext.FactorizationError, match=named):
            call(x, y, x, kernel=kernel, ridge=ridge, backend=backend)
