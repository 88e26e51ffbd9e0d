"""The table of the calls (benchmarks/gpu/floors.py): the formulas of launch_work.py against the twin; its content."""

import json

import pytest

CALLS = (
    [
        (t, *call)
        for t in ("float", "double")
        for call in (
            ("krr", 2, 70, 45, 130, 10, "low_rank", "low_rank", "all"),
            ("krr", 2, 20, 40, 64, 8, "dense", "dense"),
            ("krr", 1, 37, 70, 100, 33, "low_rank", "mixed"),
            ("krr", 1, 70, 30, 40, 8, "primal", "primal", "all"),
            ("rbf", 1, 20, 40, 33, 8, "all"),
            ("rbf", 2, 70, 40, 600, 8, "products"),
            ("matern_5", 1, 20, 40, 33, 8, "all"),
            ("polynomial", 2, 20, 40, 33, 8, "all"),
            ("laplace_1", 1, 20, 40, 33, 8, "all"),
            ("krr", 2, 100, 20, 33, 10, "low_rank", "low_rank", "fused"),
            (
                "krr",
                1,
                70,
                130,
                40,
                70,
                "low_rank",
                "mixed",
                "fused",
                "all",
            ),  # more columns than one block solves or sums
            ("rbf", 2, 40, 20, 33, 8, "fused"),
            ("cholesky", 5, 30, 40),
            ("cholesky", 2, 100, 70),
            ("cholesky", 66, 40, 33),  # enough columns for wide blocks
            ("cholesky", 1, 250, 10),
            ("krr", 1, 250, 20, 70, 66, "low_rank", "low_rank"),  # tiles, and a solve that did not factor
        )
    ]
    + [("double", "ntk", 2, 20, 40, 33, 8, "all")]
    + [
        ("float", "krr", *sizes, "low_rank", "low_rank", "one_pass", *more)
        for sizes in ((2, 10, 45, 130, 10), (1, 32, 21, 600, 5), (150, 7, 9, 33, 1), (2, 100, 70, 130, 10))
        for more in ((), ("all",))
    ]
    + [("float", "cholesky", 1, 250, 3, "cluster"), ("float", "cholesky", 1, 260, 0, "cluster")]
    + [("float", "product", 2, 132, 72, k, "k-float", "across-float", 128, "halves") for k in (104, 1032)]
    + [
        ("float", "product", 2, 70, 40, 90, a, b, 64)
        for a in ("k-float", "across-bf16")
        for b in ("k-bf16", "across-float")
    ]
    + [
        ("float", "product", 2, 132, 72, k, f"k-{element}", f"across-{element}", tile)
        for element in ("float", "bf16", "f16")
        for tile in (64, 128)
        for k in (104, 1032)
    ]
)


@pytest.fixture(scope="module")
def floors(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "benchmarks" / "gpu"))
        import floors

        yield floors


@pytest.mark.parametrize("call", CALLS, ids=lambda c: "-".join(map(str, c)))
def test_formulas_are_what_the_twin_counts(floors, call):
    launches = floors.twin.ask("counts", *call)["launches"]
    assert len(launches) > (call[1] != "product")
    for launch in launches:
        work = floors.work(launch)
        counted = (launch["flops"], launch["loaded"], launch["stored"])
        assert counted == (work.executed, work.loaded, work.stored), (work, launch)


def test_a_launch_without_a_run_is_the_launch_of_a_run(floors):
    for call in CALLS[:10]:
        dry, counted = (floors.twin.ask(how, *call)["launches"] for how in ("launches", "counts"))
        for one, other in zip(dry, counted, strict=True):
            same = ("kernel", "blocks", "threads", "shared", "arguments")
            assert [one[key] for key in same] == [other[key] for key in same]


def test_one_pass_is_few_launches_that_read_the_queries_once(floors):
    """Launches at the sizes of the speed table. test_formulas_are_what_the_twin_counts holds the formula of the bytes
    to the counted loads."""
    for most, batch, s, q, d, c in ((3, 1, 10, 1024, 2048, 10), (5, 64, 100, 256, 512, 10)):
        words = ("krr", batch, s, q, d, c, "low_rank", "low_rank", "one_pass")
        for gradients in ((), ("all",)):
            launches = floors.twin.ask("launches", "float", *words, *gradients)["launches"]
            assert len(launches) <= most
            forward, backward = launches[-2:]
            few = forward["kernel"] == "few_kernel"
            assert few == (s <= 32) and backward["kernel"] == "finish_kernel"
            parts, tiles = forward["arguments"][0]["parts"], -(-q // forward["arguments"][0]["rows"])
            times = tiles if few else 2 * parts  # that X_s is read, from L2
            assert floors.work(forward).loaded == 4 * batch * (q * d + q * c + times * s * d + parts * (s * c + 1))
        no_queries = floors.work(floors.twin.ask("launches", "float", *words)["launches"][-1])
        assert no_queries.loaded < 4 * batch * (s * d + parts * forward["arguments"][0]["part"] * 2 + 2 * s * s)


def test_the_committed_table_is_that_of_this_code(floors, root):
    committed = json.loads((root / "benchmarks" / "results" / "sass.json").read_text())["calls"]
    assert committed == json.loads(json.dumps(floors.measure())), "make sass writes the table anew"
    works = {r["work"].split(", ")[0] for r in committed}
    assert len(works) == 8 and all(r["floor_us"] > 0 and r["launches"] > 0 for r in committed)
    assert [sum(r["picked"] for r in committed if r["work"].split(", ")[0] == work) for work in works] == [1] * 8


# One number or one row per problem, read and written plainly.
UNCOUNTED = {
    "probe",
    "ridge",
    "border",
    "rbf_hyper",
    "alpha_sum",
    "nan",
    "fill",
}


def test_every_kernel_is_counted_and_coalesced(floors):
    seen = floors.twin.accesses()
    known = set(floors.twin.names_of(floors.twin.build()).values())
    plain = {k for k in known if k.split("_kernel")[0] in UNCOUNTED}
    assert known - set(seen) == plain, "calls in twin.CALLS reach all others"
    for kernel, row in seen.items():
        assert row["operand_waste"] <= 1.1 and row["load_waste"] <= 1.3, (kernel, row)
        assert row["store_waste"] <= 4, (kernel, row)
        assert row["ways"] <= 2, (kernel, row)
    with_loops = ("tensor", "half", "halves", "mixed", "plain", "block", "fused", "factor", "cluster", "solve")
    in_loops = [row for kernel, row in seen.items() if kernel.startswith(with_loops)]
    assert len(in_loops) >= 32 and all(row["loads"] > 100 and row["ways"] > 0 for row in in_loops)


def test_occupancy_counts_with_the_shared_memory_of_a_launch(floors):
    """sass.py's table has no launches: one-block factorisations are at n = 128, others at any size or their own."""
    import sass

    seen = {}
    for size in ("float", "double"):
        calls = [
            ("krr", 1, 128, 64, 96, 70, "dense", "dense", "fused"),
            ("krr", 1, 300, 64, 96, 4, "low_rank", "low_rank"),
            ("rbf", 1, 128, 64, 96, 70, "fused"),
            ("rbf", 1, 128, 64, 96, 70, "products"),
            ("cholesky", 1, 128, 70),
            ("cholesky", 132, 128, 33),
            ("cholesky", 1, 32, 1),
        ]
        if size == "float":
            pairs = [("float", "float"), ("bf16", "bf16"), ("f16", "f16"), ("float", "bf16")]
            calls += [("product", 1, 64, 64, 64, f"k-{a}", f"k-{b}", tile) for a, b in pairs for tile in (64, 128)]
            calls.append(("product", 1, 64, 64, 64, "k-float", "k-float", 128, "halves"))
            calls.append(("cholesky", 1, 512, 0, "cluster"))
            sizes = ((64, 100, 256, 512, 10), (1, 10, 1024, 2048, 10))
            calls = [("krr", *row, "low_rank", "low_rank", "one_pass") for row in sizes] + calls
        else:
            calls += [(network, 1, 128, 64, 96, 70) for network in ("nngp", "ntk")]
        for call in calls:
            for launch in floors.twin.ask("launches", size, *call)["launches"]:
                seen[launch["kernel"]] = launch["shared"]
    for kernel, shared in seen.items():
        assert shared == next((b for part, b in sass.DYNAMIC.items() if kernel.startswith(part)), 0), kernel
    assert all(any(kernel.startswith(part) for kernel in seen) for part in sass.DYNAMIC)


def test_the_counters_see_a_strided_read(floors):
    """The same product with operands whose neighbouring lanes read distant addresses would exceed the limit."""
    rows = floors.twin.ask("counts", "float", "strided", 1, 64, 64, 64, 8)["accesses"]
    loads = [r for r in rows if r["space"] == "load" and "plain" in r["kernel"]]
    assert sum(r["sectors"] for r in loads) > 3 * sum(r["least_sectors"] for r in loads)
