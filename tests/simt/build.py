"""Builds the programs of this folder, once a session and sanitizer, and starts them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",  # machines and stacks live for ever, on purpose
    "TSAN_OPTIONS": "halt_on_error=1:report_bugs=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@functools.cache
def build(root: Path, sanitizer: str, target: str) -> Path:
    """build/simt-SANITIZER/TARGET (kept: the next build is incremental). sanitizer: plain, address or thread."""
    folder = root / "build" / f"simt-{sanitizer}"
    tools = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    assert cmake and ninja, "cmake and ninja are build requirements"
    source = root / "tests" / "simt"
    flags = "" if sanitizer == "plain" else "address,undefined" if sanitizer == "address" else sanitizer
    for command in (
        [cmake, "-S", source, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DSANITIZE={flags}"],
        [cmake, "--build", folder, "-j", "2", "--target", target],
    ):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return folder / target


def start(program: Path, *arguments: str, threads: int = 2) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, env=environment)
