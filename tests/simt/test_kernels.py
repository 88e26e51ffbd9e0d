"""The CUDA kernels on the host twin: the core's table of problems and the kernels' own tests; and through nvcc."""

import json
import re
import shutil

import pytest

# The parts of the table that `make sanitize` runs; of each part it runs one row in this many.
SANITIZED = [
    "product_",
    "one_norm_",
    "distances_",
    "narrow_",
    "fused_",
    "large_",
    "cluster_",
    "one_pass_",
    "gram_",
    "cholesky_",
    "krr_",
]
EVERY = 10
PARTS = [
    "product",
    "one_norm",
    "distances",
    "narrow",
    "fused",
    "large",
    "cluster_",
    "one_pass",
    "counts",
    "gram",
    "cholesky",
    "krr",
]
# Of the parts of the table that take longest, one row in this many.
THINNED = {"krr": 5, "one_pass": 3, "product": 2, "large": 2}
# It is only loaded, never launched.
NEVER_LAUNCHED = {"probe_kernel"}


@pytest.fixture(scope="module")
def done(start):
    """done(part): the finished process of this part of the table."""
    finished = {}

    def run(part: str):
        if part not in finished:
            finished[part] = start("simt_tests", part, str(THINNED.get(part, 1)), str(EVERY))
        return finished[part]

    return run


@pytest.mark.parametrize("part", PARTS)
def test_kernels_on_the_twin(done, part):
    assert done(part).returncode == 0 and "passed, 0 failed" in done(part).stdout, done(part).stdout + done(part).stderr


def test_what_is_sanitized_reaches_every_kernel(done, program, root, sass):
    """The smaller sample is a part of what runs here, and the program prints which kernels it launches."""
    known, launched = sass.twin.kernels(program("simt_tests")), set()
    for part in PARTS:
        samples = re.findall(r"^sample of (\w+):(.*)$", done(part).stdout, re.MULTILINE)
        assert samples, done(part).stdout + done(part).stderr
        for name, places in samples:
            if any(word in name for word in SANITIZED):
                launched |= set(places.split())
    assert len(known) > 40 and launched <= set(known)
    assert {known[place] for place in launched} == set(known.values()) - NEVER_LAUNCHED
    makefile = (root / "Makefile").read_text()
    assert f"SANITIZED := {' '.join(SANITIZED)}\nEVERY := {EVERY}\n" in makefile


@pytest.fixture(scope="module")
def sass(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "benchmarks" / "gpu"))
        import sass

        yield sass


# Always compiled: their rows must be those of the committed table, whose rows of other files are then believed.
COMPARED = {"factor_cluster.cu", "vector.cu"}


@pytest.fixture(scope="module")
def compiled(sass, root, tmp_path_factory):
    """Every kernel compiled by nvcc for sm_90, with measures of its code.

    A source that is what the committed table was made of (its text, its headers and the compiler are the same) is not
    compiled again: its rows are the table's.
    """
    if not shutil.which("nvcc"):
        pytest.skip("NO nvcc HERE: the CUDA sources were not compiled")
    if sass.tool("nvdisasm") is None:
        for source in sass.all_sources():
            sass.compile_source(source, tmp_path_factory.mktemp("cubin"), "sm_90")
        pytest.skip("NO nvdisasm HERE: the CUDA sources compile, their code was not read")
    changed = {source.name for source in sass.changed_sources()}
    unchanged = {source.name for source in sass.all_sources()} - changed
    rows = sass.measure("sm_90", [s for s in sass.all_sources() if s.name in changed | COMPARED])
    committed = json.loads(sass.COMMITTED.read_text())
    assert committed["architecture"] == "sm_90"
    table = [{key: row[key] for key in rows[0]} for row in committed["kernels"] if row["source"] in unchanged]
    compared = [row for row in rows if row["source"] in COMPARED & unchanged]
    assert [row for row in table if row["source"] in COMPARED] == compared, "make sass writes the table anew"
    return rows + [row for row in table if row["source"] not in COMPARED]


def test_the_digest_of_a_source_is_of_all_that_its_code_follows_from(sass, tree, monkeypatch):
    files = {"a.cu": '#include "b.cuh"\n', "b.cuh": "#  include <up/c.h>\n", "up/c.h": "int c;\n", "up/d.h": "int d;\n"}
    folder = tree(files)
    monkeypatch.setattr(sass, "INCLUDED", [folder])
    monkeypatch.setattr(sass, "run", lambda *command: "release 13.0")
    digests = [sass.digest(folder / "a.cu", "sm_90")]
    for name in files:
        (folder / name).write_text(files[name] + "// more\n")
        digests.append(sass.digest(folder / "a.cu", "sm_90"))
    assert len(set(digests)) == 4 and digests[-1] == digests[-2]  # d.h is not included
    assert sass.digest(folder / "a.cu", "sm_80") not in digests
    monkeypatch.setattr(sass, "run", lambda *command: "release 13.1")
    assert sass.digest(folder / "a.cu", "sm_90") not in digests


def test_cuda_sources_compile(compiled, root):
    sources = {p.name for p in (root / "csrc" / "cuda").glob("*.cu")}
    assert {k["source"] for k in compiled} >= sources - {"gram.cu", "cholesky.cu"} and len(compiled) > 40


def test_every_kernel_has_its_row_in_the_table(compiled, sass):
    rows = [row | {"accesses": sass.twin.NO_ACCESSES} for row in compiled]
    text = sass.table(rows, "sm_90")
    assert all(f"| `{row['kernel']}` | {row['registers']} | 0 |" in text for row in compiled)


def test_no_kernel_spills_or_uses_local_memory(compiled):
    bad = [k["kernel"] for k in compiled if k["spills"] or k["stack"] or k["whole"]["local"]]
    assert bad == []


def test_kernels_wait_for_earlier_launches_first(compiled, sass):
    """With dependent launches a kernel starts while others still write. So it must not read before the wait, and must
    not load what they write as data that never changes."""
    assert [k["kernel"] for k in compiled if not k["waits first"] or k["whole"]["LDG read-only"]] == []


def test_what_stands_before_the_wait_is_found(sass):
    waits = ["S2R R0, SR_TID.X", "PREEXIT", "ULDC UR4, c[0x0]", "ACQBULK", "@P0 EXIT", "LDG.E R2, [R4.64]"]
    assert sass.waits_first(waits)
    for line in ("LDG.E R2, [R4.64]", "@P0 EXIT", "@!P1 BRA `(.L_x_1)", ".L_x_1:", "RED.E [R2]", "STG.E [R2], R3"):
        assert all(not sass.waits_first([*waits[:at], line, *waits[at:]]) for at in range(4)), line
    assert not sass.waits_first([line for line in waits if line != "ACQBULK"])
    assert not sass.waits_first([line for line in waits if line != "PREEXIT"])


def test_inner_loops_are_what_their_heads_say(compiled):
    names = ("tensor", "half", "mixed", "halves")
    loops = {name: [k for k in compiled if k["kernel"].startswith(f"{name}_kernel")] for name in names}
    assert [len(kernels) for kernels in loops.values()] == [2, 16, 12, 4]
    for kernel in loops["tensor"]:
        loop, large = kernel["loop"], "<128" in kernel["kernel"]
        # 16 k of 2 or 4 x 4 products, three of each: one copy of the code for each of three layouts of the operands.
        # Fragments come 16 bytes at a time: half as many loads of A with half the rows. Copies and the barrier of the
        # large tile stand in the loop around it, once per 32 k.
        assert kernel["whole"]["HMMA"] == 3 * (96 if large else 48), kernel
        assert loop["HMMA"] == (96 if large else 3 * 48) and loop["LDG"] == 0, kernel
        assert loop["LDSM"] + loop["LDS wide"] == (12 if large else 3 * 8), kernel
        assert loop["BAR"] == (0 if large else 1) and (loop["LDGSTS"] == 0) == large, kernel
        # Per 16 k, of the layout with fewest. 316 (184) is the least of this method: 96 (48) products, three
        # instructions for each of 48 (32) elements that are split, 64 (32) that promote, and 12 (8) loads.
        steady = kernel["steady"]
        assert steady["all"] <= (360 if large else 242) and steady["integer cycles"] <= (233 if large else 178), kernel
    for kernel in loops["half"]:
        loop, large = kernel["loop"], ", 128" in kernel["kernel"]
        assert loop["HMMA"] == (32 if large else 16) and loop["BAR"] == 1 and loop["LDG"] == 0, kernel
        assert loop["LDSM"] + loop["LDS wide"] == (12 if large else 8) and loop["FFMA"] == (64 if large else 32), kernel
        assert loop["all"] <= (235 if large else 180), kernel
    for kernel in loops["mixed"]:
        loop, narrow = kernel["loop"], kernel["kernel"].split(", ")[2:]
        wide = [n.rstrip(">") == "false" for n in narrow]
        # 8 products for 8 steps of k, 16 in a step of the loop, and 8 more for an operand of floats, which has a small
        # part; operands as single words. Floats come by copies of both widths, 16-bit ones through registers.
        assert loop["HMMA"] == 16 * (1 + sum(wide)) and loop["LDS"] <= 48 and loop["BAR"] == 1, kernel
        assert loop["LDGSTS wide"] == 2 * sum(wide) and loop["LDG"] > 0, kernel
    for kernel in loops["halves"]:
        loop = kernel["loop"]
        # 32 k of 4 x 4 products, three of each; copies of whole rows, and of rows at an edge. Not all are executed.
        assert loop["HMMA"] == 96 and loop["BAR"] == 1 and loop["LDG"] == 0 and loop["all"] <= 800, kernel
        assert loop["LDSM"] <= 36 and loop["STS"] == 8 and loop["LDGSTS wide"] == 16, kernel
    (cluster,) = (k for k in compiled if k["kernel"] == "cluster_kernel")
    # 16 k of 2 x 2 products, three of each; every fragment by one load of four matrices.
    assert cluster["loop"]["HMMA"] == 24 and cluster["loop"]["LDSM"] == 6 and cluster["loop"]["all"] <= 135, cluster
    # Four pivots: one copy of their code, with ten shuffles and four roots.
    assert cluster["whole"]["SHFL"] <= 30 and cluster["whole"]["MUFU"] <= 10, cluster
    for kernel in (k for k in compiled if k["kernel"].startswith(("plain_kernel", "distance_kernel"))):
        loop = kernel["loop"]
        if "Sign" in kernel["kernel"] or kernel["kernel"].startswith("distance"):
            # 4 steps of k in a loop of their own, so that the kernel is small enough: a subtraction and a multiply-add.
            # A sign takes two instructions more in float, and four in double.
            most = 160 if kernel["kernel"].startswith("distance") else 410 if loop["DFMA"] else 280
            assert loop["FFMA"] + loop["DFMA"] == 128 and loop["all"] <= most, kernel
            continue
        assert loop["LDS wide"] in (32, 64) and loop["FFMA"] + loop["DFMA"] >= 256, kernel
        # 4 copies of each operand's elements or, of 16-bit features, in their place 4 loads.
        assert loop["LDGSTS"] == loop["LDG"] == 8, kernel


def test_a_pivot_is_short_and_does_not_branch(compiled):
    """Of the loop of four pivots."""
    loops = {k["kernel"]: k["pivots"] for k in compiled if k["pivots"]}
    names = {"warp_kernel", "block_kernel", "factor_tiles_kernel"} | {"fused_kernel", "cluster_kernel"}
    assert {name.split("<")[0] for name in loops} == names
    for name, loop in loops.items():
        assert loop["all"] / 4 <= 48, (name, loop)
        # In four pivots: a store that not every row has, and in a cluster the exchange between its blocks.
        assert loop["branches"] <= (3 if name == "cluster_kernel" else 1), (name, loop)


# KB of code, at 16 bytes per instruction: of one kernel, and of all kernels of one call together.
KERNEL_KB, CALL_KB = 48, 110
# Above it: forward and backward of KRR, of which each kernel is fetched once per launch. S=1000 takes both sizes of
# tiles of products (48 and 37 KB), and a factorisation and a solve in tiles (38 and 34 KB).
LARGER_CALLS = {
    "B=1 S=1000 Q=1024 D=8192 C=512": 184,
    "B=64 S=100 Q=256 D=512 C=10": 156,
}


def code_kb(compiled):
    return {k["kernel"]: k["whole"]["all"] / 64 for k in compiled}


def test_the_code_of_a_kernel_fits_the_instruction_cache(compiled):
    sizes = code_kb(compiled)
    over = {k: size for k, size in sizes.items() if size > KERNEL_KB}
    assert over == {}, f"KB of code; the limit is {KERNEL_KB}"


def test_the_code_of_a_call_has_the_documented_size(compiled, sass):
    """For the orders that the library picks for the calls of the speed table."""
    floors = sass.floors
    sizes, calls = code_kb(compiled), {}
    for row in (row for row in floors.ROWS if row.picked):
        kernels = {launch["kernel"] for launch in floors.twin.ask("launches", *row.words)["launches"]}
        calls[row.work.split(", ")[0]] = sum(sizes[kernel] for kernel in kernels)
    assert len(calls) == 8 and set(LARGER_CALLS) < set(calls)
    over = {call: size for call, size in calls.items() if size > LARGER_CALLS.get(call, CALL_KB)}
    assert over == {}, f"KB of code; the limit is {CALL_KB}, and for {LARGER_CALLS} that"
    assert {call for call in LARGER_CALLS if calls[call] <= CALL_KB} == set(), "the limit of all holds for them by now"


def test_heads_say_what_a_kernel_costs(root):
    """The head of each file with kernels has mapping, traffic, FLOPs, floor and the alternative."""
    sources = [p for p in sorted((root / "csrc" / "cuda").glob("*.cu")) if p.name != "device.cu"]
    assert sources
    for path in sources:
        text = path.read_text()
        head = text[: text.index("#include")]
        parts = ("Mapping|_kernel", "Traffic", "FLOPs", "[Ff]loor", "Other path")
        missing = [part for part in parts if not re.search(part, head)]
        assert not missing, f"{path.name}: its head does not name {missing}"
