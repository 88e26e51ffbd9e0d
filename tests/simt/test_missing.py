"""The messages of a build with kernels if it cannot run them: no driver, one too old, or no code for this GPU."""

import os
import shutil
import subprocess

import pytest
import torch

# A stub of the driver, as on a machine whose driver is years old.
OLD_DRIVER = """
int cuDriverGetVersion(int* version) { *version = 11000; return 0; }
int cuInit(unsigned flags) { (void)flags; return 0; }
"""


@pytest.fixture(scope="module")
def say(root, tmp_path_factory):
    """say(name, library_path): the output of missing.cu."""
    if not shutil.which("nvcc"):
        pytest.skip("NO nvcc HERE: what is said of a missing GPU was not looked at")
    program = tmp_path_factory.mktemp("missing") / "missing"
    source = root / "tests" / "simt" / "missing.cu"
    include = f"-I{root / 'csrc' / 'cuda'}"
    command = ["nvcc", "-std=c++17", "-arch=sm_90", "-cudart=static", include, source, "-o", program]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    def run(*arguments: str, library_path: str = "") -> str:
        environment = os.environ | ({"LD_LIBRARY_PATH": library_path} if library_path else {})
        return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment).stdout

    return run


@pytest.mark.parametrize(
    "name, words",
    [
        ("no_gpu", ["need an NVIDIA GPU and a driver for CUDA", "backend='torch'"]),
        ("driver_too_old", ["need an NVIDIA GPU and a driver for CUDA", "or newer"]),
        ("architecture_not_built", ["holds no code for this GPU", "CMAKE_CUDA_ARCHITECTURES"]),
        ("ptx_too_new", ["holds no code for this GPU", "CMAKE_CUDA_ARCHITECTURES"]),
    ],
)
def test_each_error_says_what_to_do(say, name, words):
    output = say(name)
    assert output.startswith("CUDA: loading the kernels failed: ") and all(w in output for w in words), output


def test_other_errors_give_no_such_advice(say):
    output = say("something_else")
    assert output.startswith("CUDA: ") and "driver" not in output and "rebuild" not in output


def test_no_driver(say):
    if torch.cuda.is_available():
        assert say() == "nothing is missing\n"
    else:
        assert "need an NVIDIA GPU and a driver" in say()


def test_a_driver_too_old(say, tmp_path):
    (tmp_path / "old.c").write_text(OLD_DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "old.c", "-o", library], check=True)
    output = say(library_path=str(tmp_path))
    assert "driver version is insufficient" in output and "or newer" in output, output
