"""The CUDA kernels on the host twin: the core's table of problems and the kernels' own tests; and through nvcc."""

import json
import shutil
import subprocess
import sys

import pytest


@pytest.mark.parametrize("part", ["product", "narrow", "fused", "large", "counts", "gram", "cholesky", "krr"])
def test_kernels_on_the_twin(start, part):
    done = start("plain", "simt_tests", part)
    assert done.returncode == 0 and "passed, 0 failed" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compiled(root, tmp_path_factory):
    """Every kernel compiled by nvcc for sm_90, and what its code says."""
    if not shutil.which("nvcc"):
        pytest.skip("NO nvcc HERE: the CUDA sources were not compiled")
    out = tmp_path_factory.mktemp("sass")
    script = root / "benchmarks" / "sass.py"
    done = subprocess.run([sys.executable, script, "--out", out], capture_output=True, text=True)
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
        assert loop["LDS wide"] in (32, 64) and loop["LDG"] == 0 and loop["FFMA"] + loop["DFMA"] >= 256, kernel
