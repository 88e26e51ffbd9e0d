"""Shared by all tests: the path of the source tree, and the handling of a missing GPU."""

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Thousands of tests are collected, and none of them is garbage: looking for it would take a third of that time.
gc.disable()

# Python started by a test (python -c, python -m) must not find the source tree's ssdd_ext, which has no _C, in the
# current directory before the installed one. PYTHONPATH still counts.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(scope="session")
def root() -> Path:
    """The source tree. Tests read files there, but import the installed package."""
    return ROOT


@pytest.fixture(scope="session")
def building():
    """with building(folder): no other process of the tests builds there meanwhile, as tests run in two processes."""

    @contextlib.contextmanager
    def lock(folder: Path) -> Iterator[None]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return lock


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """fresh(code, *arguments, folder, timeout, **environment): the finished process of this Python code (fresh.py)."""
    place, servers = tmp_path_factory.mktemp("fresh"), []

    def stop():
        server = servers.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    def run(code: str, *arguments, folder: Path = place, timeout: float = 120, **environment: str | None):
        if not servers:
            command = [sys.executable, "-P", ROOT / "tests" / "fresh.py"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            servers.append(subprocess.Popen(command, **pipes, bufsize=0, start_new_session=True))
        files = {"output": str(place / "output.txt"), "errors": str(place / "errors.txt")}
        request = {"code": code, "arguments": [*map(str, arguments)], "environment": environment, "folder": str(folder)}
        servers[0].stdin.write(json.dumps(request | files).encode() + b"\n")
        if not select.select([servers[0].stdout], [], [], timeout)[0]:
            stop()
            pytest.fail(f"not finished after {timeout} seconds: {code}")
        answer = servers[0].stdout.readline()
        texts = [Path(file).read_text() for file in files.values()]
        return subprocess.CompletedProcess(code, json.loads(answer), *texts)

    yield run
    if servers:
        stop()


@pytest.fixture
def tree(tmp_path):
    """Write a small source tree: tree({"pkg/a.py": "import os"}) returns its root."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


# The files that take longest come first, in this order. `make test` hands whole files to two processes, and neither
# should begin one of these when the other has nothing left. The first two build in different folders.
LONGEST = [
    "simt/test_kernels.py",
    "ext/core/test_build.py",
    "simt/test_core.py",
    "ext/test_transforms.py",
    "ssdd/studies/test_fill.py",
    "ext/test_accuracy.py",
    "ssdd/cli/test_verbs.py",
    "house/test_style.py",
    "house/test_packaging.py",
    "ssdd/test_parallel.py",
    "ext/test_bench.py",
    "docs/test_blocks.py",
    "simt/test_faults.py",
    "simt/test_rows.py",
    "ext/test_cuda_proof.py",
    "ext/test_krr.py",
    "ssdd/cli/test_program.py",
    "docs/test_site.py",
    "ssdd/report/test_pictures.py",
    "ext/test_planned.py",
    "ssdd/distillation/test_storage.py",
    "ssdd/studies/test_workers.py",
    "ssdd/test_artifact_page.py",
    "ssdd/teachers/test_teachers.py",
]


def pytest_collection_finish():
    gc.freeze()  # the tests' own collections do not look through these objects
    gc.enable()


def pytest_collection_modifyitems(items):
    """Put the longest files first, and skip GPU tests if there is no GPU.

    SSDD_REQUIRE_GPU=1 turns those skips into failures.
    """
    rank = {ROOT / "tests" / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    if torch.cuda.is_available() or os.environ.get("SSDD_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="NO GPU HERE: this test did not run"))
