"""Linter, formatter, type checker, and the length of functions."""

import ast
import subprocess
import sys
from pathlib import Path

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


def test_types_of_the_backend(root):
    run(root, "mypy", "-p", "ssdd_ext")


def test_types_of_the_distillation(root):
    run(root, "mypy", "-p", "ssdd")
