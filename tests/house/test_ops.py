"""Every op is a quartet with one base name, and CONTRIBUTING's list of the files of an op is right."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

OPS = {"gram", "cholesky", "krr", "tridiagonal"}
WITHOUT_CUDA_TWIN = {"tridiagonal"}
# Headers in csrc/ that are not an op's contract.
PLUMBING = {"tensor", "check", "dlpack", "arena", "device", "openblas", "reader", "angles"}


def functions(path: Path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}


def broken_quartets(root: Path, ops: set[str], without_cuda: set[str]) -> list[str]:
    offences = []
    reference = functions(root / "ssdd_ext" / "reference.py")
    for op in sorted(ops):
        for twin in (f"csrc/{op}.h", f"csrc/cpu/{op}.cpp"):
            if not (root / twin).is_file():
                offences.append(f"{op}: {twin} is missing")
        if (root / f"csrc/cuda/{op}.cu").is_file() == (op in without_cuda):
            what = "is there: take it off the list" if op in without_cuda else "is missing and not listed"
            offences.append(f"{op}: csrc/cuda/{op}.cu {what}")
        if op not in reference:
            offences.append(f"{op}: ssdd_ext/reference.py has no function of that name")
    contracts = {path.stem for path in (root / "csrc").glob("*.h")} - PLUMBING
    offences += [f"{name}: csrc/{name}.h is no listed op's contract" for name in sorted(contracts - ops)]
    return offences


def add_an_op_files(contributing: Path) -> list[str]:
    section = re.search(r"^## Add an op\n(.*?)^## ", contributing.read_text(), re.MULTILINE | re.DOTALL)
    assert section, "CONTRIBUTING.md has no section 'Add an op'"
    return re.findall(r"`([\w./]+/[\w.]*)`", section.group(1))


def missing_files(root: Path, names: list[str], ops: set[str], without_cuda: set[str]) -> list[str]:
    missing = []
    for name in names:
        for op in sorted(ops) if "NAME" in name else [""]:
            file = name.replace("NAME", op)
            listed = "/cuda/" in name and op in without_cuda
            if not listed and not (root / file).exists():
                missing.append(file)
    return missing


def test_every_op_is_a_quartet(root):
    assert broken_quartets(root, OPS, WITHOUT_CUDA_TWIN) == []


def test_contributing_names_files_that_exist(root):
    names = add_an_op_files(root / "CONTRIBUTING.md")
    assert {"csrc/NAME.h", "csrc/cpu/NAME.cpp", "csrc/cuda/NAME.cu", "ssdd_ext/reference.py"} <= set(names)
    assert missing_files(root, names, OPS, WITHOUT_CUDA_TWIN) == []


RECIPES = ["kernel function", "teacher", "data source", "baseline"]


def recipe_files(contributing: Path, what: str) -> list[str]:
    """Return the files in the numbered steps of "Add a ..."."""
    section = re.search(rf"^## Add a {what}\n(.*?)^## ", contributing.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"CONTRIBUTING.md has no section 'Add a {what}'"
    steps = "\n".join(re.findall(r"^\d\. .*$", section.group(1), re.MULTILINE))
    return re.findall(r"`([\w.]+/[\w./]*)`", steps)


def absent(root: Path, names: list[str]) -> list[str]:
    """Return the names without a file; NAME stands for any name."""
    return [name for name in names if not any(root.glob(name.replace("NAME", "*")))]


@pytest.mark.parametrize("what", RECIPES)
def test_recipes_name_files_that_exist(root, what):
    names = recipe_files(root / "CONTRIBUTING.md", what)
    assert len(names) >= 3 and any(name.startswith("tests/") or "testing" in name for name in names)
    assert absent(root, names) == []


def test_recipe_checker_objects(tree):
    text = "## Add a teacher\n\n1. `a/b.py`: text, `lost/file.py`.\n2. `a/NAME.py`, `lost/NAME.py`\n\n## Next\n"
    root = tree({"CONTRIBUTING.md": text, "a/b.py": ""})
    assert absent(root, recipe_files(root / "CONTRIBUTING.md", "teacher")) == ["lost/file.py", "lost/NAME.py"]


def test_contributing_lists_the_rooms_that_the_test_enforces(root):
    text = (root / "CONTRIBUTING.md").read_text()
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert len(rooms) == 2
    for layers in rooms:
        beside = [f"[{', '.join(layer.split(' | '))}]" if "|" in layer else layer for layer in reversed(layers)]
        assert f": {', '.join(beside)}; " in text or f": {', '.join(beside)}." in text, beside


# --- the checkers must be able to fail ------------------------------------------------------------------

WHOLE = {
    "csrc/op.h": "",
    "csrc/check.h": "",
    "csrc/cpu/op.cpp": "",
    "csrc/cuda/op.cu": "",
    "ssdd_ext/reference.py": "def op(): ...",
}


@pytest.mark.parametrize("lost", ["csrc/op.h", "csrc/cpu/op.cpp", "csrc/cuda/op.cu", "ssdd_ext/reference.py"])
def test_quartet_checker_objects_to_a_lost_twin(tree, lost):
    root = tree(WHOLE)
    assert broken_quartets(root, {"op"}, set()) == []
    (root / lost).write_text("") if lost.endswith(".py") else (root / lost).unlink()
    assert len(broken_quartets(root, {"op"}, set())) == 1


def test_quartet_checker_objects_to_a_stale_list_and_an_unlisted_op(tree):
    root = tree(WHOLE | {"csrc/other.h": ""})
    assert len(broken_quartets(root, {"op"}, {"op"})) == 2


def test_contributing_checker_objects(tree):
    text = "## Add an op\n1. `csrc/NAME.h`, `csrc/cuda/NAME.cu`, `lost/file.py`\n\n## Next\n"
    root = tree(WHOLE | {"CONTRIBUTING.md": text})
    names = add_an_op_files(root / "CONTRIBUTING.md")
    assert missing_files(root, names, {"op", "new"}, {"new"}) == ["csrc/new.h", "lost/file.py"]
