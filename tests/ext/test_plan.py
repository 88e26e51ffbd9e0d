"""The plan: every legal order of the products gives the same numbers, and the choice is a function of the shapes."""

import inspect
import itertools
import json
import re

import pytest
import torch

import ssdd_ext
from ssdd_ext import RBF, Linear, Ridge, plan
from ssdd_ext.testing import Problem, draw, gradients, mse, predictions, relative_error

SIZES = {
    "wide": (20, 30, 50, 4),
    "wide_many_targets": (20, 30, 50, 40),
    "square": (24, 9, 24, 24),
    "tall": (40, 30, 8, 5),
}
KERNELS = {"linear": Linear(1.5), "linear_bias": Linear(1.5, 0.5), "rbf": RBF(6.0)}


def problem_of(row):
    return plan.Problem(row.s, row.q, row.d, row.c, row.kernel.linear, bool(getattr(row.kernel, "bias", 0)), itemsize=8)


def legal(row):
    chosen = plan.choose(problem_of(row))
    return list(itertools.product(chosen.costs["forward"], chosen.costs["backward"]))


ROWS = [
    Problem(f"plan_{shape}_{name}", *sizes, kernel, Ridge.mean_trace(1e-2), batch=batch)
    for shape, sizes in SIZES.items()
    for name, kernel in KERNELS.items()
    for batch in ((), (3,))
]


def krr(i, **keywords):
    return ssdd_ext.krr(i.x_s, i.y_s, i.x_q, kernel=i.kernel, ridge=i.ridge, **keywords)


def krr_mse(i, **keywords):
    return ssdd_ext.krr_mse(i.x_s, i.y_s, i.x_q, i.y_q, kernel=i.kernel, ridge=i.ridge, **keywords)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}{row.batch}")
@pytest.mark.parametrize("hyper", ["numbers", "scalar"])
def test_every_legal_order_is_the_formula(row, hyper):
    # Detached: with an attached trace and no bias, predictions do not depend on the scale at all.
    row = Problem(**vars(row) | {"hyper": hyper, "ridge": Ridge.mean_trace(1e-2, detach=True)})
    inputs = draw(row)
    reference, want_mse = predictions(inputs), mse(inputs)
    expected, expected_mse = gradients(reference, inputs), gradients(want_mse, inputs)
    for forward, backward in legal(row):
        with plan.force(forward=forward, backward=backward):
            for got, value, grads in (
                (krr(inputs, backend="native"), reference, expected),
                (krr_mse(inputs, backend="native"), want_mse, expected_mse),
            ):
                assert relative_error(got, value) < 1e-11, (forward, backward)
                found = gradients(got, inputs)
                assert found.keys() == grads.keys()
                for name, gradient in grads.items():
                    assert relative_error(found[name], gradient) < 1e-9, (forward, backward, name)


@pytest.mark.parametrize("needs", [("x_s",), ("y_s",), ("x_q",), ("x_s", "x_q"), ("y_s", "y_q")], ids="+".join)
def test_every_legal_order_under_each_need(needs):
    for row in ROWS[:: len(KERNELS)]:
        inputs = draw(row, requires_grad=needs)
        expected = gradients(mse(inputs), inputs)
        for forward, backward in legal(row):
            with plan.force(forward=forward, backward=backward):
                found = gradients(krr_mse(inputs, backend="native"), inputs)
            for name, gradient in expected.items():
                assert relative_error(found[name], gradient) < 1e-9, (row.name, forward, backward, name)


def test_there_is_a_choice_to_test():
    """Dense and low rank for the dual; only the primal if D (+1) < S; only dense without features."""
    orders = {row.name: plan.choose(problem_of(row)).costs for row in ROWS if not row.batch}
    assert {"dense", "low_rank"} <= set(orders["plan_wide_linear"]["forward"])
    assert {"dense", "low_rank"} <= set(orders["plan_wide_linear"]["backward"])
    assert set(orders["plan_tall_linear"]["forward"]) == {"primal"}
    assert set(orders["plan_wide_rbf"]["forward"]) == {"dense"}
    named = set().union(*(o["forward"] for o in orders.values()))
    assert named == set(plan.FORWARD)
    assert set().union(*(o["backward"] for o in orders.values())) == set(plan.BACKWARD)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("d_more", [-2, -1, 0, 1])
def test_around_the_border_of_the_primal(kernel, d_more):
    inputs = draw(Problem(f"border{d_more}", 12, 7, 12 + d_more, 3, kernel, Ridge.mean_trace(1e-2)))
    expected = gradients(predictions(inputs), inputs)
    got = krr(inputs, backend="native")
    assert relative_error(got, predictions(inputs)) < 1e-11
    for name, gradient in gradients(got, inputs).items():
        assert relative_error(gradient, expected[name]) < 1e-9, name


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("size", [1, 1 << 12, 1 << 15])
def test_queries_in_chunks(kernel, size, monkeypatch):
    """With a small limit for K_qs, queries come in several chunks and K_qs is not kept; the numbers stay the same."""
    monkeypatch.setattr(plan.problem, "K_QS_BYTES", size)
    plan._choose.cache_clear()
    try:
        row = Problem("chunks", 15, 333, 21, 13, kernel, Ridge.mean_trace(1e-2), batch=(2,))
        assert plan.choose(problem_of(row)).chunk < row.q
        inputs = draw(row)
        reference = mse(inputs)
        for forward, backward in legal(row):
            with plan.force(forward=forward, backward=backward):
                got = krr_mse(inputs, backend="native")
                found = gradients(got, inputs)
                assert relative_error(krr(inputs, backend="native"), predictions(inputs)) < 1e-11
            assert relative_error(got, reference) < 1e-11
            for name, gradient in gradients(reference, inputs).items():
                assert relative_error(found[name], gradient) < 1e-9, (forward, backward, name)
    finally:
        plan._choose.cache_clear()


def test_force_refuses_and_restores():
    inputs = draw(ROWS[0])
    before = plan.choose(problem_of(ROWS[0]))
    with (
        pytest.raises(ValueError, match="forward: expected one of dense, low_rank, primal, got 'fast'"),
        plan.force(forward="fast"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="'primal' is not legal.*legal are dense, low_rank"),
        plan.force(forward="primal"),
    ):
        krr(inputs, backend="native")
    with plan.force(backward="dense"), plan.force(forward="low_rank"):
        assert plan.choose(problem_of(ROWS[0])).backward == "dense"
        assert plan.choose(problem_of(ROWS[0])).forward == "low_rank"
    assert plan.choose(problem_of(ROWS[0])) == before


def test_the_choice_follows_the_shape():
    def forward(s, q, d, c):
        return plan.choose(plan.Problem(s, q, d, c)).forward

    assert forward(1000, 1024, 8192, 10) == "low_rank"
    assert forward(5000, 5000, 512, 10) == "primal"
    assert forward(100, 1024, 2048, 100) == "dense"
    chosen = plan.choose(plan.Problem(300, 200, 400, 20))
    for which in ("forward", "backward"):
        assert getattr(chosen, which) in chosen.costs[which]
        assert all(cost > 0 for cost in chosen.costs[which].values())


def test_explain_names_the_plan_and_its_costs():
    row = Problem("explain", 1000, 1024, 8192, 10)
    x_s, y_s, x_q = (torch.ones(1, 1).expand(*shape) for shape in ((row.s, row.d), (row.s, row.c), (row.q, row.d)))
    text = ssdd_ext.explain(x_s, y_s, x_q)
    assert "low_rank" in text and "dense" in text and "backward" in text
    assert "torch reference" in ssdd_ext.explain(x_s, y_s, x_q, backend="torch")
    with pytest.raises(ValueError, match="^x_q"):
        ssdd_ext.explain(x_s, y_s, x_q[:, :5])


def test_explain_takes_every_argument_of_the_calls():
    x_s, y_s, x_q = torch.ones(6, 9), torch.ones(6, 2), torch.ones(4, 9)
    named = {"kernel": RBF(2.0), "ridge": Ridge.mean_trace(0.1), "on_failure": "nan", "return_info": True}
    named |= {"check_finite": True, "backend": "auto", "solve_dtype": torch.float64}
    for call in (ssdd_ext.krr, ssdd_ext.krr_mse):
        assert set(inspect.signature(call).parameters) <= set(inspect.signature(ssdd_ext.explain).parameters)
    assert "native (it can run), factor of order 6" in ssdd_ext.explain(x_s, y_s, x_q, **named)
    assert "native (it can run), factor of order 6" in ssdd_ext.explain(x_s, y_s, x_q, torch.ones(4, 2), **named)
    for wrong, words in (({"ridge": 1e-3}, "^ridge"), ({"on_failure": "no"}, "^on_failure"), ({"y_q": x_q}, "^y_q")):
        with pytest.raises((TypeError, ValueError), match=words):
            ssdd_ext.explain(x_s, y_s, x_q, **wrong)


def test_explain_says_why_and_in_which_order_planned_pytorch_runs():
    x_s, y_s, x_q = (torch.ones(1, 1).expand(*shape) for shape in ((1000, 8192), (1000, 10), (1024, 8192)))
    text = ssdd_ext.explain(x_s, y_s, x_q, backend="planned")
    assert text.startswith("planned PyTorch (asked for): dual, factor of order 1000; predictions low_rank")
    assert "primal, factor of order 8" in ssdd_ext.explain(x_s[:, :8], y_s, x_q[:, :8], backend="planned")
    assert "dual, dense" in ssdd_ext.explain(x_s, y_s, x_q, kernel=RBF(1.0), backend="planned")


def test_explain_names_the_fast_path():
    x_s, y_s, x_q = torch.ones(6, 9, requires_grad=True), torch.ones(6, 2), torch.ones(4, 9)
    assert "loss and gradients in one call" in ssdd_ext.explain(x_s, y_s, x_q, torch.ones(4, 2))
    assert "loss and gradients in one call" not in ssdd_ext.explain(x_s, y_s, x_q)


# --- on a GPU: seconds by a model, testable without one --------------------------------------------------------------

H100 = plan.Gpu()


def gpu_plan(*sizes, gpu=H100, **more):
    return plan.choose(plan.Problem(*sizes, **more), gpu)


def test_gpu_plans_are_legal_and_say_their_unit():
    for row in ROWS:
        chosen = plan.choose(problem_of(row), H100)
        assert set(chosen.costs["forward"]) == set(plan.choose(problem_of(row)).costs["forward"])
        assert set(chosen.costs["backward"]) == set(plan.choose(problem_of(row)).costs["backward"])
        assert all(0 < cost < 1 for table in chosen.costs.values() for cost in table.values())
        assert "microseconds on H100" in str(chosen)


def test_gpu_plans_follow_the_shape():
    # With ten support points launches decide, with a thousand and few targets FLOPs do.
    assert gpu_plan(10, 1024, 2048, 10).forward == "dense"
    assert gpu_plan(1000, 1024, 8192, 10).forward == gpu_plan(1000, 1024, 8192, 10).backward == "low_rank"
    assert gpu_plan(5000, 5000, 512, 10).forward == "primal"
    assert gpu_plan(50, 100, 40, 10, linear=False).backward == "dense"


def test_gpu_gram_is_fused_if_launches_decide_and_apart_if_one_processor_would_read_everything():
    assert gpu_plan(10, 100, 64, 10).fused_gram and gpu_plan(32, 100, 40, 10, linear=False, batch=64).fused_gram
    assert not gpu_plan(100, 1024, 4096, 10).fused_gram
    assert not gpu_plan(1000, 100, 2000, 10).fused_gram  # too large for one block
    assert "K_ss fused" in str(gpu_plan(10, 100, 64, 10))
    small = plan.Gpu(shared=16 << 10)
    assert not gpu_plan(64, 100, 64, 10, gpu=small).fused_gram


def test_gpu_costs_grow_with_the_work_and_fall_with_the_device():
    def cost(gpu=H100, **change):
        sizes = {"s": 300, "q": 512, "d": 1024, "c": 20} | change
        return min(plan.choose(plan.Problem(**sizes), gpu).costs["forward"].values())

    base = cost()
    for bigger in ({"batch": 1000}, {"s": 2000}, {"d": 100_000}, {"q": 100_000}, {"itemsize": 8}):
        assert cost(**bigger) > base, bigger
    assert cost(batch=1000, d=4096, feature_size=2) < cost(batch=1000, d=4096)  # half the bytes, a third of the passes
    assert cost(plan.Gpu(launch=0.0)) < base < cost(plan.Gpu(launch=1e-5))
    assert cost(plan.Gpu(bandwidth=1e11), batch=100) > cost(batch=100)


def test_gpu_constants_are_scaled_from_what_cuda_says():
    class Half:
        name, multi_processor_count, major, minor = "half of one", 66, 9, 0

    class Card:
        name, multi_processor_count, major, minor = "a card", 84, 8, 6
        clock_rate, memory_clock_rate, memory_bus_width = 1695000, 9751000, 384
        shared_memory_per_block_optin = 101376

    half, card = plan.Gpu.of(Half()), plan.Gpu.of(Card())
    assert half.name == "half of one" and half.fp32 == pytest.approx(H100.fp32 / 2)
    assert half.bandwidth == pytest.approx(H100.bandwidth / 2)
    reached = plan.constants.BANDWIDTH / plan.constants.SHEET_BANDWIDTH
    assert card.bandwidth == pytest.approx(936e9 * reached, rel=1e-3) and card.shared == 101376
    assert card.fp64 < card.fp32 / 20
    assert plan.choose(problem_of(ROWS[0]), card).device == "a card"


def test_shared_memory_of_the_model_is_that_of_the_kernels():
    """The largest orders that one block of an H100 holds; tests/simt/test_fused.cpp has the same numbers."""
    for itemsize, whole, fused in ((4, 228, 220), (8, 158, 150)):
        fits = [n for n in range(1, 257) if plan.gpu.fits_block(H100, n, itemsize)]
        with_stages = [n for n in range(1, 257) if plan.gpu.fits_block(H100, n, itemsize, fused=True)]
        assert (max(fits), max(with_stages)) == (whole, fused)


def test_constants_are_those_that_were_measured(root):
    """Compare with the committed run on an H100: medians within a tenth."""
    found = json.loads((root / "benchmarks" / "results" / "gpu-h100" / "gpu_constants.json").read_text())
    c = plan.constants
    for constant, name, what in (
        (c.LAUNCH, "launch gap in a graph", "seconds"),
        (c.BANDWIDTH, "memory", "bytes_per_second"),
        (c.PIVOT, "pivot, one warp", "cycles"),
        (c.TILE_COLUMN, "tile column of the factor", "cycles"),
        (c.SOLVE_TILE, "tile of the solve, 64 columns", "cycles"),
        (c.SOLVE_TILE, "tile of the solve, 512 columns", "cycles"),
        (c.TENSOR, "product, fp32 on the tensor cores", "flops"),
        (c.ONE_PASS, "product, bf16 features", "flops"),
        (c.FP64, "product, fp64", "flops"),
        (c.CLOCK / 1e3, "device", "clock_rate"),
        (c.MULTIPROCESSORS, "device", "multiprocessors"),
    ):
        assert constant == pytest.approx(found[name][what], rel=0.1), name


def measured_rows(root):
    """Return the rows of ssdd_ext in the committed run on an H100, with the seconds of their graphs."""
    path = root / "benchmarks" / "results" / "gpu-h100" / "rows.jsonl"
    ended = [line for line in map(json.loads, path.read_text().splitlines()) if "rows" in line]
    rows = [row for line in ended for row in line["rows"] if row["alternative"] == "ssdd_ext"]
    return [(row, row["graph_seconds"]["median"]) for row in rows if "s" in row["problem"]]


def test_modelled_times_are_near_the_measured_ones(root):
    """Compare the orders that ran, whatever is picked today."""
    measured = measured_rows(root)
    assert len(measured) == 5
    for row, seconds in measured:
        p = row["problem"]
        forward, backward = re.search(r"forward (\w+), backward (\w+)", row["plan"]).groups()
        costs = gpu_plan(p["s"], p["q"], p["d"], p["c"], bordered=p["bias"] != 0, batch=p["b"]).costs
        ratio = (costs["forward"][forward] + costs["backward"][backward]) / seconds
        assert 1 / 1.6 < ratio < 1.6, (p, ratio)


def test_tiles_splits_and_limits_of_the_model_are_those_of_the_kernels(root):
    sources = sorted((root / "csrc" / "cuda").glob("*.cu*"))
    text = {path.name: re.sub(r"//.*", "", path.read_text()) for path in sources}
    g = plan.gpu
    for name, file, value in (
        ("kTile", "product.cuh", g.TILE),
        ("kLargeTile", "product.cuh", g.LARGE_TILE),
        ("kDepth", "product.cuh", g.DEPTH),
        ("kChip", "product.cuh", g.CHIP),
        ("kProcessors", "product.cuh", g.LARGE_CHIP),
        ("kShortest", "product_plain.cu", g.SHORTEST),
        ("kLargeShortest", "product_plain.cu", g.LARGE_SHORTEST),
        ("kMostSplits", "product_plain.cu", g.MOST_SPLITS),
        ("kShortForTensor", "product_plain.cu", g.TENSOR_FROM),
        ("kWarpLimit", "factor.cuh", g.WARP_LIMIT),
        ("kPassLimit", "factor.cuh", g.PASSES_UP_TO),
        ("kPanel", "factor.cuh", g.COLUMNS),
        ("kStrip", "triangle.cuh", g.STRIP),
        ("kPassColumns", "factor_block.cuh", g.PASS),
        ("kSquare", "factor_fused.cu", g.SQUARE),
        ("kNarrowColumns", "after_solve.cuh", g.NARROW),
    ):
        assert re.findall(rf"\b{name} = (\d+)", text[file]) == [str(value)], (name, file)
    assert f"constexpr int64_t kJoin = {g.JOIN_STEPS};" in text["product_plain.cu"]
    assert f"constexpr double kLargePays = {g.LARGE_ALLOWANCE};" in text["product_plain.cu"]


def test_build_info_says_what_runs():
    info = ssdd_ext.build_info()
    assert {"cuda", "instruction_set", "instruction_sets", "threads", "torch"} <= set(info)
    assert info["instruction_set"] in info["instruction_sets"]
