"""The layer that kernels are written in costs nothing in nvcc's output."""

import re
import shutil

import pytest


@pytest.fixture(scope="module")
def code(root, tmp_path_factory):
    """Return the instructions of each kernel in both_ways.cu, with jumps renumbered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "benchmarks" / "gpu"))
        import sass

        if not shutil.which("nvcc") or sass.tool("nvdisasm") is None:
            pytest.skip("NO nvcc OR NO nvdisasm HERE: what the layer costs was not looked at")
        source, folder = root / "tests" / "simt" / "both_ways.cu", tmp_path_factory.mktemp("both")
        kernels = sass.disassemble(sass.compile_source(source, folder, "sm_90")[0])
    return {name: renamed(lines, name) for name, lines in kernels.items()}


def renamed(lines, name):
    """Number labels and the compiler's own subroutines by their order here instead of in the file."""
    labels: dict[str, str] = {}
    text = "\n".join(lines).replace(name, "KERNEL")
    numbered = r"\.L_x_\d+|__internal_\d+"
    return re.sub(numbered, lambda m: labels.setdefault(m.group(), f"N{len(labels)}"), text).splitlines()


def test_a_kernel_written_both_ways_is_the_same_code(code):
    assert set(code) == {"layer_kernel", "plain_kernel", "other_kernel"}
    layer = code["layer_kernel"]
    assert layer == code["plain_kernel"]
    for opcode in (
        "LDGSTS",
        "HMMA.1688",
        "HMMA.16816",
        "LDSM",
        "SHFL",
        "VOTE",
        "BAR",
        "LDS.128",
        "STG.E.128",
        "UCGABAR",
        "PREEXIT",
        "ACQBULK",
    ):
        assert any(opcode in line for line in layer), f"the kernel does not touch {opcode}"


def test_other_code_differs(code):
    assert code["other_kernel"] != code["layer_kernel"]
