"""torch.library.opcheck on every registered op, with the arguments of the public calls."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ssdd_ext
from ssdd_ext import Linear, Ridge
from ssdd_ext.testing import TABLE, Problem, draw, gradients

FORWARD = {"gram", "cholesky", "solve", "krr"}
BACKWARD = {"solve_backward", "krr_backward"}


class Recorder(TorchDispatchMode):
    """Records (op, args) of our ops that run under it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ssdd_ext":
            assert not kwargs
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def record(run):
    with Recorder() as recorder:
        run()
    return recorder.calls


def every_public_call(inputs, on_failure):
    i, options = inputs, {"on_failure": on_failure, "backend": "native"}
    krr_options = {"kernel": i.kernel, "ridge": i.ridge, **options}
    k_ss = ssdd_ext.gram(i.x_s, kernel=i.kernel, backend="native")
    k_qs = ssdd_ext.gram(i.x_q, i.x_s, kernel=i.kernel, backend="native")
    eye = torch.eye(i.x_s.shape[-2], dtype=k_ss.dtype)
    results = [
        k_ss,
        k_qs,
        ssdd_ext.cholesky(k_ss.detach() + eye, **options),
        ssdd_ext.cholesky_solve(k_ss, i.y_s, ridge=i.ridge, **options),
        ssdd_ext.krr(i.x_s, i.y_s, i.x_q, **krr_options),
        ssdd_ext.fit(i.x_s, i.y_s, **krr_options).predict(i.x_q),
        ssdd_ext.krr_from_gram(k_ss, i.y_s, k_qs, ridge=i.ridge, **options),
    ]
    if i.y_q.shape[-2]:
        results.append(ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, **krr_options))
    for result in results:
        gradients(result, i)


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
"""The checks of opcheck that trace nothing and take milliseconds."""


def checked(func, args, checks=(*QUICK, "test_aot_dispatch_dynamic")):
    """Run opcheck: a forward op with gradients, a backward op (which refuses its own backward) without."""
    forward = func._schema.name.split("::")[1] in FORWARD

    def leaf(a):
        return a.detach().clone().requires_grad_(forward) if isinstance(a, torch.Tensor) else a

    torch.library.opcheck(func, tuple(map(leaf, args)), test_utils=checks)


def test_the_ops_that_are_checked_are_all_there_are():
    registered = {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if "ssdd_ext::" in n}
    assert registered == FORWARD | BACKWARD


@pytest.mark.parametrize(
    "name, on_failure, traced",
    [
        ("krr_st", "raise", False),
        ("krr_st_tall", "nan", True),
        ("batch_2x3_rbf", "nan", True),
        ("hyper_trace_linear", "raise", False),
        ("batch_0_linear", "raise", False),
        ("no_query_rbf", "nan", False),
    ],
)
def test_opcheck(name, on_failure, traced):
    calls = record(lambda: every_public_call(draw(TABLE[name]), on_failure))
    seen = {}
    for func, args in calls:
        seen.setdefault((func, tuple(a is None for a in args)), args)
    assert {func._schema.name.split("::")[1] for func, _ in seen} == FORWARD | BACKWARD
    for (func, _), args in seen.items():
        checked(func, args, *([] if traced else [QUICK]))


def test_opcheck_float32_and_jitter():
    row = Problem("opcheck", 9, 5, 7, 3, Linear(1.0, 1.0), Ridge.absolute(0.0), batch=(2,), decay=8.0)
    inputs = draw(row, dtype=torch.float32)
    calls = record(lambda: every_public_call(inputs, "jitter"))
    done = set()
    for func, args in calls:
        if func not in done:
            done.add(func)
            checked(func, args)
    assert len(done) == len(FORWARD | BACKWARD)


def test_every_output_is_a_function_of_the_inputs():
    """Uninitialised memory in an output that only the backward reads is an error too."""
    for name in ("krr_st", "krr_st_tall", "past_block_linear", "batch_5_rbf", "hyper_trace_linear"):
        for func, args in record(lambda name=name: every_public_call(draw(TABLE[name]), "nan")):
            first = func(*args)
            for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (first, func(*args))), strict=True):
                assert torch.equal(a, b), (name, func)


def test_nothing_is_computed_without_a_gradient():
    inputs = draw(TABLE["krr_st"], requires_grad=())
    calls = record(lambda: every_public_call(inputs, "nan"))
    assert not {func._schema.name.split("::")[1] for func, _ in calls} & BACKWARD


def test_one_factorisation_for_forward_and_backward():
    inputs = draw(TABLE["krr_st"])

    def step():
        ssdd_ext.krr_mse(inputs.x_s, inputs.y_s, inputs.x_q, inputs.y_q, backend="native").backward()

    assert [func._schema.name for func, _ in record(step)] == ["ssdd_ext::krr", "ssdd_ext::krr_backward"]


def test_another_device_is_refused_by_name():
    """Ops exist for CPU and CUDA. On another device backend="native" says where it runs."""
    x = torch.ones(3, 2, device="meta")
    with pytest.raises(ValueError, match=r"^backend: 'native' cannot run gram here: .*not on meta"):
        ssdd_ext.gram(x, backend="native")
    assert ssdd_ext.gram(x, backend="torch").shape == (3, 3)
