"""Builds the programs of this folder, and starts them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pybind11
import pytest

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    # Fibers and their stacks are never freed, on purpose.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@pytest.fixture(scope="session")
def program(root, building):
    """program(target): build/simt-plain/TARGET (kept, so the next build is incremental)."""
    tools = str(sys.executable).rsplit("/", 1)[0] + os.pathsep + os.environ.get("PATH", os.defpath)
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    assert cmake and ninja, "cmake and ninja are build requirements"
    built = {}

    def build(target: str):
        folder = root / "build" / "simt-plain"
        if target not in built:
            options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DSANITIZE="]
            if target == "simt_core":
                options += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
            configure = [cmake, "-S", root / "tests" / "simt", "-B", folder, "-G", "Ninja", *options]
            with building(folder):
                for command in (configure, [cmake, "--build", folder, "-j", "2", "--target", target]):
                    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
                    if done.returncode != 0:
                        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}", pytrace=False)
            built[target] = folder / target
        return built[target]

    return build


@pytest.fixture(scope="session")
def start(program):
    """start(target, *arguments): the finished process."""

    def run(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "2"}
        command = [str(program(target)), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run
