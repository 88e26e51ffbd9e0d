"""Build and run the core's C++ tests here under the sanitizers, and for aarch64 under qemu."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# One row in this many of each table, and the first; others on each instruction set. `make sanitize` runs all rows.
EVERY = 8


def build_and_run(root: Path, name: str, *options: str, run_under: tuple[str, ...] = ()) -> str:
    """Build in build/core-NAME (kept, so the next build is incremental) and return the output of the tests."""
    build = root / "build" / f"core-{name}"
    tools = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    assert cmake and ninja, "cmake and ninja are build requirements"
    source = root / "tests" / "ext" / "core"
    run([cmake, "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options])
    run([cmake, "--build", build, "-j", "2"])
    return run([*run_under, build / "core_tests", "", EVERY])


def run(command: list) -> str:
    environment = os.environ | {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        # libgomp keeps its threads until the process ends. Leaks of the core are still reported.
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


def test_core_under_sanitizers(root):
    assert "passed" in build_and_run(root, "sanitize", "-DSANITIZE=address,undefined")


def test_core_on_aarch64(root):
    missing = [tool for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"NO {' AND NO '.join(missing)} HERE: the core was not tried on aarch64")
    toolchain = root / "tests" / "ext" / "core" / "aarch64.cmake"
    emulator = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
    out = build_and_run(root, "aarch64", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", run_under=emulator)
    assert "passed" in out
