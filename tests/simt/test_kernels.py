"""The CUDA kernels on the host twin: the core's table of problems and the kernels' own tests; and through nvcc."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

# What `make sanitize` runs: these parts of the table, and of each about one row in so many.
SANITIZED = ["product_", "narrow_", "fused_", "large_", "gram_", "cholesky_", "krr_"]
EVERY = 12
# Asked whether it loads, never launched.
NEVER_LAUNCHED = {"probe_kernel"}


@pytest.mark.parametrize("part", ["product", "narrow", "fused", "large", "counts", "gram", "cholesky", "krr"])
def test_kernels_on_the_twin(start, part):
    done = start("plain", "simt_tests", part)
    assert done.returncode == 0 and "passed, 0 failed" in done.stdout, done.stdout + done.stderr


def test_what_is_sanitized_reaches_every_kernel(start, program, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import twin

    known, launched = twin.kernels(program("plain", "simt_tests")), set()
    for part in SANITIZED:
        done = start("plain", "simt_tests", part, str(EVERY))
        assert done.returncode == 0, done.stdout + done.stderr
        launched |= set(done.stdout.splitlines()[-1].removeprefix("launched: ").split())
    assert len(known) > 40 and launched <= set(known)
    assert {known[place] for place in launched} == set(known.values()) - NEVER_LAUNCHED
    makefile = (root / "Makefile").read_text()
    assert f"SANITIZED := {' '.join(SANITIZED)}\nEVERY := {EVERY}\n" in makefile


@pytest.fixture(scope="module")
def compiled(root, tmp_path_factory):
    """Every kernel compiled by nvcc for sm_90, and what its code says."""
    if not shutil.which("nvcc"):
        pytest.skip("NO nvcc HERE: the CUDA sources were not compiled")
    out = tmp_path_factory.mktemp("sass")
    script = root / "benchmarks" / "sass.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}  # it imports its neighbours
    done = subprocess.run([sys.executable, script, "--out", out], capture_output=True, text=True, env=environment)
    if "no nvdisasm" in done.stderr:
        pytest.skip("NO nvdisasm HERE: the CUDA sources compile, their code was not read")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "sass.json").read_text())["kernels"]


def test_cuda_sources_compile(compiled, root):
    sources = {p.name for p in (root / "csrc" / "cuda").glob("*.cu")}
    assert {k["source"] for k in compiled} >= sources - {"gram.cu", "cholesky.cu"} and len(compiled) > 40


def test_no_kernel_spills_or_uses_local_memory(compiled):
    bad = [k["kernel"] for k in compiled if k["spills"] or k["stack"] or k["whole"]["local"]]
    assert bad == []


def test_inner_loops_are_what_their_heads_say(compiled):
    tensor = [k for k in compiled if k["kernel"].startswith("tensor_kernel")]
    assert len(tensor) == 16
    for kernel in tensor:
        loop, narrow = kernel["loop"], kernel["kernel"].split(", ")[2:]
        wide = [n.rstrip(">") == "false" for n in narrow]
        # 24 products for 8 steps of k, 16 in a step of the loop, and 8 fewer for each operand of 16 bits, which has no
        # small part; operands as single words. Floats come by copies of both widths, 16-bit ones through registers.
        assert loop["HMMA"] == 16 * (1 + sum(wide)) and loop["LDS"] <= 48 and loop["BAR"] == 1, kernel
        assert loop["LDGSTS wide"] == 2 * sum(wide) and (loop["LDG"] == 0) == all(wide), kernel
    for kernel in (k for k in compiled if k["kernel"].startswith("plain_kernel")):
        loop = kernel["loop"]
        assert loop["LDS wide"] in (32, 64) and loop["FFMA"] + loop["DFMA"] >= 256, kernel
        # 4 copies of each operand's elements or, of 16-bit features, in their place 4 loads.
        assert loop["LDGSTS"] == loop["LDG"] == 8, kernel


def test_heads_say_what_a_kernel_costs(root):
    """Mapping, traffic, FLOPs, floor and the other path stand at the head of each file with kernels."""
    sources = [p for p in sorted((root / "csrc" / "cuda").glob("*.cu")) if p.name != "device.cu"]
    assert sources
    for path in sources:
        text = path.read_text()
        head = text[: text.index("#include")]
        wanted = ("Mapping|_kernel", "Traffic", "FLOPs", "[Ff]loor", "Other path")
        missing = [w for w in wanted if not re.search(w, head)]
        assert not missing, f"{path.name}: its head does not name {missing}"
