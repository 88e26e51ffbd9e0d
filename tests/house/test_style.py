"""Linter, formatters, type checker, and the length of functions."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

LIMIT = 80  # lines of a function, its docstring left out


def long_functions(root: Path, limit: int) -> list[str]:
    """Return functions of more than ``limit`` lines, without docstrings and inner functions."""
    found, seen = [], 0
    for folder in ("ssdd_ext", "python", "benchmarks", "tests", "docs", "examples"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.FunctionDef):
                    continue
                seen += 1
                body = node.body[ast.get_docstring(node) is not None :]
                inner = [n for n in body if isinstance(n, ast.FunctionDef)]
                length = sum(n.end_lineno - n.lineno + 1 for n in body if n not in inner)
                if length > limit:
                    found.append(f"{path.relative_to(root)}: {node.name}: {length} lines")
    assert seen, "no functions: nothing was measured"
    return found


def run(root: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_functions_are_read_in_one_sitting(root):
    assert long_functions(root, LIMIT) == []


def test_length_checker_objects(tree):
    docstring, body, inner = '    """A.\n\n    B.\n    """\n', "    x = 1\n" * 4, "    def g():\n        y = 1\n"
    root = tree({"python/p/a.py": f"def f():\n{docstring}{body}{inner}"})
    assert long_functions(root, 4) == []
    assert long_functions(root, 3) == ["python/p/a.py: f: 4 lines"]


def test_ruff(root):
    run(root, "ruff", "check", ".")


def test_format(root):
    run(root, "ruff", "format", "--check", ".")


NATIVE = {".h", ".cpp", ".cu", ".cuh"}


def clang_format() -> str:
    """The formatter beside this Python, or on the PATH."""
    beside = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)
    found = shutil.which("clang-format", path=beside)
    assert found, f"clang-format is missing: {sys.executable} -m pip install -c constraints.txt clang-format"
    return found


def native_sources(root: Path) -> list[Path]:
    """All C++ and CUDA sources."""
    found = [p for f in ("csrc", "tests") for p in sorted((root / f).rglob("*")) if p.suffix in NATIVE]
    assert found, "no C++ sources: nothing was formatted"
    return found


def test_native_format(root):
    command = [clang_format(), "--dry-run", "--Werror", *native_sources(root)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}to repair: {command[0]} -i FILE"


def test_native_format_objects(root, tree):
    folder = tree({"csrc/a.cpp": "int  f( ){return 1;}\n"})
    shutil.copy(root / ".clang-format", folder)
    with pytest.raises(AssertionError, match="a.cpp:1:4: error: code should be clang-formatted"):
        test_native_format(folder)


def test_types(root):
    run(root, "mypy", "-p", "ssdd_ext", "-p", "ssdd")


def test_modules_without_types_are_not_used(root):
    """mypy does not read these (pyproject.toml), so what is called there would go unchecked."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mypy"]
    (skipped,) = (names["module"] for names in settings["overrides"] if names.get("follow_imports") == "skip")
    roots = [re.escape(name.removesuffix(".*")) for name in skipped]
    used = re.compile(rf"^ *(from|import) ({'|'.join(roots)})\b", re.MULTILINE)
    sources = [path for folder in ("ssdd_ext", "python") for path in sorted((root / folder).rglob("*.py"))]
    assert len(roots) > 10 and used.search("    from torch.fx.graph import Graph")
    assert [path.name for path in sources if used.search(path.read_text())] == []
