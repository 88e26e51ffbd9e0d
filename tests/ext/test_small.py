"""The fast path of small problems: every call that it is for takes it, and no other."""

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, FactorizationError, Linear, Ridge, plan
from ssdd_ext.ops import small
from ssdd_ext.testing import Inputs, Problem, draw, gradients, mse, relative_error


@pytest.fixture
def native_calls(monkeypatch):
    """Count the calls that reach the native core by the fast path; they run normally."""
    calls = []
    run = small.core.krr_value_and_gradient

    def counted(*arguments):
        calls.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(small.core, "krr_value_and_gradient", counted)
    return calls


def krr_mse(i, **keywords):
    return ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, kernel=i.kernel, ridge=i.ridge, **keywords)


KERNELS = {"linear": Linear(), "scaled": Linear(1.5, 0.5), "rbf": RBF(4.0)}
# S, Q, D, C and batch: fused and not, dual (dense, low rank) and primal, one and several problems, near the limit.
SHAPES = {
    "one": (1, 1, 1, 1, ()),
    "tiny": (10, 32, 16, 4, ()),
    "wide": (20, 30, 200, 3, ()),
    "many_targets": (20, 30, 50, 40, ()),
    "primal": (60, 40, 8, 5, ()),
    "batch": (10, 16, 12, 2, (7,)),
    "batch_of_one": (10, 16, 12, 2, (1,)),
    "medium": (50, 60, 100, 10, ()),
    "large_enough": (100, 100, 120, 10, ()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_it_is_meant_for_takes_it(shape, kernel, dtype, native_calls):
    *sizes, batch = SHAPES[shape]
    row = Problem(shape, *sizes, KERNELS[kernel], Ridge.mean_trace(0.1), batch=batch)
    inputs = draw(row, dtype=dtype, requires_grad=("x_s", "y_s"))
    loss = krr_mse(inputs)
    assert len(native_calls) == 1, "one native call for the loss and its gradients"
    found = gradients(loss, inputs)
    assert relative_error(loss, mse(inputs)) < (1e-3 if dtype == torch.float32 else 1e-9)
    assert set(found) == {"x_s", "y_s"} and len(native_calls) == 1


@pytest.mark.parametrize("weights", ["ones", "equal", "different"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_batch_by_lanes_takes_it_and_every_problem_has_its_own_gradient(dtype, weights, native_calls):
    """A gradient of 1 returns what the forward computed; every other one multiplies it, problem by problem."""
    row = Problem("lanes", 16, 16, 32, 4, Linear(bias=0.5), Ridge.mean_trace(0.1), batch=(700,))
    inputs = draw(row, dtype=dtype, requires_grad=("x_s", "y_s", "x_q"))
    kinds = {"ones": torch.ones(700), "equal": torch.full((700,), -0.25), "different": torch.linspace(0.5, 2.0, 700)}
    weight = kinds[weights].to(dtype)
    found = torch.autograd.grad(krr_mse(inputs), list(inputs.leaves().values()), weight)
    assert len(native_calls) == 1
    wide = inputs.to(torch.float64)
    expected = torch.autograd.grad(mse(wide), list(wide.leaves().values()), weight.double())
    assert max(map(relative_error, found, expected)) < (1e-4 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("needs", [("x_s",), ("y_s",), ("x_q",), ("x_s", "y_s", "x_q")], ids="+".join)
@pytest.mark.parametrize("on_failure", ["raise", "nan", "jitter"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_every_need_layout_and_choice_takes_it(needs, on_failure, layout, native_calls):
    row = Problem("needs", 10, 16, 12, 2, Linear(bias=1.0), Ridge.trace(1e-2), batch=(3,), layout=layout)
    inputs = draw(row, requires_grad=needs)
    assert set(gradients(krr_mse(inputs, on_failure=on_failure), inputs)) == set(needs)
    assert len(native_calls) == 1
    assert set(gradients(krr_mse(inputs, on_failure=on_failure, backend="native"), inputs)) == set(needs)
    assert len(native_calls) == 2


def reasons_for_the_ordinary_path():
    """Return reason for the ordinary path -> the change to a call that otherwise takes the fast path."""
    tensor = torch.tensor(1.5, dtype=torch.float64)
    return {
        "nothing to differentiate": {"requires_grad": ()},
        "a gradient of y_q": {"requires_grad": ("x_s", "y_q")},
        "the targets have another batch": {"row": {"batch": (2,), "batch_y_s": ()}},
        "two batch dimensions": {"row": {"batch": (2, 2)}},
        "an empty batch": {"row": {"batch": (0,)}},
        "half precision": {"dtype": torch.bfloat16},
        "too much work": {"row": {"s": 200, "q": 300, "d": 400}},
        "a tensor in the kernel": {"row": {"kernel": Linear(tensor)}},
        "a tensor for a ridge": {"row": {"ridge": Ridge.trace(tensor)}},
        "the status is asked for": {"keywords": {"return_info": True}},
        "finite numbers are asked for": {"keywords": {"check_finite": True}},
        "another dtype is asked for": {"dtype": torch.float32, "keywords": {"solve_dtype": torch.float64}},
        "planned PyTorch is asked for": {"keywords": {"backend": "planned"}},
        "the reference is asked for": {"keywords": {"backend": "torch"}},
    }


@pytest.mark.parametrize("why", reasons_for_the_ordinary_path())
def test_calls_on_the_ordinary_path(why, native_calls):
    change = reasons_for_the_ordinary_path()[why]
    row = Problem(**({"name": "plain", "s": 10, "q": 16, "d": 12, "c": 2, "batch": ()} | change.get("row", {})))
    inputs = draw(row, dtype=change.get("dtype", torch.float64), requires_grad=change.get("requires_grad", ("x_s",)))
    result = krr_mse(inputs, **change.get("keywords", {}))
    assert native_calls == []
    loss = result[0] if isinstance(result, tuple) else result
    assert loss.shape == row.full_batch


def test_without_gradients_or_under_a_forced_plan_it_is_not_taken(native_calls):
    inputs = draw(Problem("plain", 10, 16, 12, 2), requires_grad=("x_s",))
    with torch.no_grad():
        krr_mse(inputs)
    with plan.force(forward="low_rank"):
        krr_mse(inputs)
    torch.func.grad(lambda x: krr_mse(Inputs(**vars(inputs) | {"x_s": x}), on_failure="nan"))(inputs.x_s.detach())
    assert native_calls == []
    krr_mse(inputs)
    assert len(native_calls) == 1


def test_a_failure_is_tried_there_and_reported_by_the_ordinary_op(native_calls):
    x = torch.ones(4, 2, requires_grad=True)
    y, ridge = torch.ones(4, 1), Ridge.absolute(0.0)
    with pytest.raises(FactorizationError, match="pivot 2 of 4"):
        ssdd_ext.krr_mse(x, y, x, y, kernel=RBF(1.0), ridge=ridge)
    assert len(native_calls) == 1
    assert ssdd_ext.krr_mse(x, y, x, y, kernel=RBF(1.0), ridge=ridge, on_failure="nan").isnan()
    assert ssdd_ext.krr_mse(x, y, x, y, kernel=RBF(1.0), ridge=ridge, on_failure="jitter").isfinite()


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, TypeError])
def test_a_fault_of_the_core_is_not_swallowed(kind, monkeypatch):
    """Only a refused argument leads to the ordinary path. Any other exception is a bug, and is raised."""

    def broken(*arguments):
        raise kind("a fault")

    monkeypatch.setattr(small.core, "krr_value_and_gradient", broken)
    with pytest.raises(kind, match="a fault"):
        krr_mse(draw(Problem("fault", 10, 16, 12, 2), requires_grad=("x_s",)))


@pytest.mark.parametrize("shape", [(10, 16, 12, 2), (30, 16, 12, 2)])
@pytest.mark.parametrize("batch", [(), (5,)])
def test_without_gradients_both_roads_give_the_same_bits(shape, batch):
    s, q, d, c = shape
    x_s, y_s = torch.randn(*batch, s, d), torch.randn(*batch, s, c)
    x_q, y_q = torch.randn(*batch, q, d), torch.randn(*batch, q, c)
    ordinary, _ = ssdd_ext.krr(x_s, y_s, x_q, return_info=True)
    assert torch.equal(ssdd_ext.krr(x_s, y_s, x_q), ordinary)
    loss, _ = ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, return_info=True)
    assert torch.equal(ssdd_ext.krr_mse(x_s, y_s, x_q, y_q), loss)
