"""Shared by all tests: the path of the source tree, and the handling of a missing GPU."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

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

    @contextmanager
    def lock(folder: Path) -> Iterator[None]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return lock


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


def pytest_collection_modifyitems(items):
    """Skip GPU tests if there is no GPU; SSDD_REQUIRE_GPU=1 turns those skips into failures."""
    if torch.cuda.is_available() or os.environ.get("SSDD_REQUIRE_GPU") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="NO GPU HERE: this test did not run"))
