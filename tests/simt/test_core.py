"""The whole path from a public call in Python to the CUDA kernels, on the host twin.

Tests of tests/ext run again in a process of their own whose core has only the kernels (core.cpp). There the core, and a
copy of ssdd_ext in which the words is_cpu and is_cuda are swapped, treat CPU tensors as a GPU's. So plans, workspaces,
layouts and 16-bit features are handled as on a GPU.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "PYTHONSAFEPATH": "1"}
FILES = ["cuda_values", "ops", "gram", "cholesky", "krr", "far_clusters", "plan", "one_pass"]
FILES += ["drop_in", "transforms"]
# Left out: torch.compile's result does not depend on the core, and finite differences in double repeat the test against
# the formula; together they cost as much as all other tests. The fast path of small problems exists on the CPU only,
# planned PyTorch runs none of our kernels, and opcheck asks the schemas, which are the same.
LEFT_OUT = ["test_compile_", "test_gradcheck_", "test_small_problem", "fast_path", "planned", "test_opcheck"]
# In test_cuda_values.py: empty batches, which compute nothing.
SILENT = re.compile(r"\[batch_(2x)?0_")
# It is only loaded, never launched.
NOT_REACHED = {"probe"}


def as_on_a_gpu(text: str) -> str:
    other = {"is_cpu": "is_cuda", "is_cuda": "is_cpu"}
    return re.sub(r"\b(is_cpu|is_cuda)\b", lambda word: other[word.group()], text)


def kind_of(kernel: str) -> tuple[str, ...]:
    """Return a kernel and its number types. Its tile, layout or width follows from sizes and strides inside the
    core. test_kernels.py reaches all of those; some need problems too large for here."""
    return kernel.split("_kernel")[0], *re.findall("float|double|Bf16|Half", kernel)


@pytest.fixture(scope="module")
def twin_core(root, program):
    """The built module, ssdd_ext/_C of the copy."""
    (module,) = program("simt_core").glob("_C.*.so")
    return module


@pytest.fixture(scope="module")
def copy(root, twin_core, tmp_path_factory):
    """A folder for PYTHONPATH with the plugin and the package with this core."""
    folder = tmp_path_factory.mktemp("core")
    shutil.copy(root / "tests" / "simt" / "on_the_twin.py", folder)
    changed = 0
    for source in sorted((root / "ssdd_ext").rglob("*.py")):
        target = folder / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        target.write_text(as_on_a_gpu(text))
        changed += text != as_on_a_gpu(text)
    assert changed >= 5, "the words that tell a GPU's tensors are others by now"
    shutil.copy(twin_core, folder / "ssdd_ext")
    return folder


@pytest.fixture(scope="module")
def python(root, copy):
    """python(*arguments): the finished process of an interpreter that imports the copy."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(copy)}
        environment.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)

    return run


def test_python_through_the_kernels(python, copy, twin_core, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "gpu"))
    import twin

    files = [f"tests/ext/test_{name}.py" for name in FILES]
    # Not fd: if the twin stops the process, the reason is on standard error.
    options = ["-q", "-p", "no:cacheprovider", "-p", "on_the_twin", "--capture=sys", "--show-capture=no"]
    chosen = ["-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    done = python("-m", "pytest", *options, *chosen, *files)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    report = json.loads((copy / "report.json").read_text())
    tests = report["tests"]
    assert len(tests) > 400 and {t["outcome"] for t in tests.values()} == {"passed"}
    called = [t for t in tests.values() if t["launches"]]
    assert {t["asked"] for t in called} == {True, False}
    assert all(t["dependent"] == t["asked"] * t["launches"] for t in called), "the switch reaches every launch, or none"
    for name in files:
        assert sum(t["launches"] for test, t in tests.items() if test.startswith(name)) > 10, name
    quiet = [test for test, t in tests.items() if test.startswith(files[0]) and not t["launches"]]
    assert [test for test in quiet if not SILENT.search(test)] == []
    known, launched = twin.kernels(twin_core), set(report["launched"])
    assert len(known) > 40 and launched <= set(known)
    reached = {kind_of(known[place]) for place in launched}
    assert {kind for kind in map(kind_of, known.values()) if kind[0] not in NOT_REACHED} == reached


CALL = """
import ssdd_ext
from ssdd_ext import _C as core
print(ssdd_ext.build_info()["instruction_set"], flush=True)
core.cholesky_workspace(1, 2, 3, 1, {})
"""


def test_this_core_has_no_half_for_the_cpu(python):
    """A call on the CPU stops the process and names the reason, so no test can pass on the CPU by mistake."""
    there, here = python("-c", CALL.format(True)), python("-c", CALL.format(False))
    assert there.returncode == 0 and there.stdout == "host twin\n", there.stderr
    assert here.returncode == 70 and "the CPU's half of the core was called" in here.stderr
