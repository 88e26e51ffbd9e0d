"""Linter, type checker, and the length of files."""

import subprocess
import sys
from pathlib import Path

HARD_LIMIT = 450  # the aim is about 300 lines of Python and 400 of C++
SUFFIXES = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh"}
FOLDERS = ("csrc", "ssdd_ext", "python", "benchmarks", "tests")


def long_files(root: Path, limit: int) -> list[str]:
    lengths = {
        path.relative_to(root): len(path.read_text().splitlines())
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in SUFFIXES
    }
    assert lengths, "no files: nothing was measured"
    return [f"{path}: {length} lines" for path, length in lengths.items() if length > limit]


def run(root: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_read_in_one_sitting(root):
    assert long_files(root, HARD_LIMIT) == []


def test_length_checker_objects(tree):
    root = tree({"csrc/a.h": "\n" * 11, "python/p/b.py": "\n" * 10})
    assert long_files(root, 10) == ["csrc/a.h: 11 lines"]


def test_ruff(root):
    run(root, "ruff", "check", ".")


def test_types_of_the_backend(root):
    run(root, "mypy", "-p", "ssdd_ext")


def test_types_of_the_distillation(root):
    run(root, "mypy", "-p", "ssdd")
