"""The laws about Python code, checked on the syntax trees: which module may import which, and what none may do.

The checkers take a directory and return offences as `file:line: what`, so that each checker is also shown to fail.
"""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# The layers of import-linter (pyproject.toml) are the rooms, bottom first. It enforces their order and finds circles.
# The face, __init__, uses all rooms except the command line of ssdd, which uses the face.
PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
ROOMS = {
    contract["containers"][0]: [
        room.strip() for layer in reversed(contract["layers"]) for room in layer.replace(":", "|").split("|")
    ]
    for contract in PROJECT["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
}
FACE = "__init__"


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    source: str  # importing module
    target: str  # imported module, absolute
    name: str | None  # imported name, if it is not a module itself

    def __str__(self) -> str:
        what = self.target + (f".{self.name}" if self.name else "")
        return f"{self.path.name}:{self.line}: {self.source} imports {what}"


class Package:
    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.trees: dict[str, tuple[Path, ast.Module]] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join((name, *(parts[:-1] if parts[-1] == FACE else parts)))
            self.trees[module] = (path, ast.parse(path.read_text(), str(path)))

    def room(self, module: str) -> str:
        """Return the first name below the package; for the package itself, its face."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else FACE

    def imports(self) -> Iterator[Import]:
        for module, (path, tree) in self.trees.items():
            here = module.split(".") if path.stem == FACE else module.split(".")[:-1]
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        yield Import(path, node.lineno, module, alias.name, None)
                elif isinstance(node, ast.ImportFrom):
                    base = here[: len(here) - node.level + 1] if node.level else []
                    target = ".".join([*base, *([node.module] if node.module else [])])
                    for alias in node.names:
                        inner = f"{target}.{alias.name}"
                        if inner in self.trees or alias.name == "_C":
                            yield Import(path, node.lineno, module, inner, None)
                        else:
                            yield Import(path, node.lineno, module, target, alias.name)


def face_imports(package: Package) -> list[str]:
    """Return imports of the face by rooms of its own package. The command line and ``__main__`` may import it."""
    return [
        str(i)
        for i in package.imports()
        if i.target == package.name and package.room(i.source) not in (FACE, "cli", "__main__")
    ]


def arrows(package: Package) -> set[tuple[str, str]]:
    """Return (importing room, imported room); the face is no room."""
    rooms = {
        (package.room(i.source), package.room(i.target))
        for i in package.imports()
        if i.target.split(".")[0] == package.name
    }
    return {(source, target) for source, target in rooms if source != target and FACE not in (source, target)}


def is_native_module(dotted: str) -> bool:
    return dotted.split(".")[-1] == "_C" and not dotted.startswith("torch")


def native_module_imports(package: Package, allowed: str | None) -> list[str]:
    """Return imports of _C outside `allowed`, and those in a `try`, a branch or a function, or by name."""
    offences = [str(i) for i in package.imports() if is_native_module(i.target) and i.source != allowed]
    for module, (path, tree) in package.trees.items():
        top_level = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                base = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
                if any(map(is_native_module, names)) and id(node) not in top_level:
                    offences.append(f"{path.name}:{node.lineno}: {module} imports _C conditionally")
            elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
                text = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
                if any(map(is_native_module, text)):
                    offences.append(f"{path.name}:{node.lineno}: {module} imports _C by its name")
    return offences


def environment_reads(package: Package) -> list[str]:
    offences = []
    for _module, (path, tree) in package.trees.items():
        for node in ast.walk(tree):
            names = [node.attr] if isinstance(node, ast.Attribute) else []
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                names = [alias.name for alias in node.names]
            for name in names:
                if name in ("environ", "environb", "getenv", "putenv"):
                    offences.append(f"{path.name}:{node.lineno}: reads the environment (os.{name})")
    return offences


def library_imports(package: Package, library: str, rooms: set[str]) -> list[str]:
    """Return imports of `library` outside of some rooms."""
    outside = [i for i in package.imports() if package.room(i.source) not in rooms]
    return [str(i) for i in outside if i.target.split(".")[0] == library]


def shadowed_modules(package: Package) -> list[str]:
    """Return modules hidden by another object of the same name in their package."""
    offences = []
    for i in package.imports():
        shadowed = f"{i.source}.{i.name}"
        if i.name is not None and shadowed in package.trees and i.path.stem == FACE:
            offences.append(f"{i}: shadows the module {shadowed}")
    return offences


def public_names(face: Path) -> set[str]:
    for node in ast.parse(face.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{face} has no literal __all__")


def private_uses(package: Package, library: str, public: set[str]) -> list[str]:
    """Return uses of `library` in `package` that are not names in its __all__."""
    offences = []
    for i in package.imports():
        if i.target.split(".")[0] == library and (i.target != library or (i.name and i.name not in public)):
            offences.append(f"{i}: not a public name of {library}")
    for module, (path, tree) in package.trees.items():
        aliases = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == library
        }
        for node in ast.walk(tree):
            attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if attribute and node.value.id in aliases and node.attr not in public:
                offences.append(f"{path.name}:{node.lineno}: {module} uses {library}.{node.attr}, not public")
    return offences


# --- the house ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend(root):
    return Package(root / "ssdd_ext", "ssdd_ext")


@pytest.fixture(scope="module")
def distillation(root):
    return Package(root / "python" / "ssdd", "ssdd")


@pytest.fixture(params=["ssdd_ext", "ssdd"])
def package(request, backend, distillation):
    chosen = {"ssdd_ext": backend, "ssdd": distillation}[request.param]
    assert len(chosen.trees) > 1, f"{chosen.folder} holds no modules: the laws would check nothing"
    return chosen


def test_import_linter_keeps_its_contracts(root):
    """import-linter checks the order of the rooms, that the packages are apart, and that there are no circles
    (pyproject.toml)."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    folders = os.pathsep.join(map(str, (root, root / "python")))
    environment = os.environ | {"PYTHONPATH": folders}
    done = subprocess.run([*command, "--no-cache"], cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 4 kept, 0 broken" in done.stdout


def test_no_room_imports_the_face(package):
    assert face_imports(package) == []


def test_the_rooms_of_the_distillation_know_few_others(distillation):
    found = arrows(distillation)
    assert len(ROOMS["ssdd"]) == 13 and len(found) <= 38, sorted(found)  # of 78


def test_the_command_line_uses_the_face(distillation):
    known = {target for source, target in arrows(distillation) if source == "cli"}
    assert known == {"config", "report"}


def test_no_name_of_the_distillation_shadows_a_module(distillation):
    found = shadowed_modules(distillation)
    assert [text for text in found if "ssdd.cli imports" not in text] == []  # verbs: nobody imports the command line


def test_only_ops_imports_the_native_module(package):
    assert native_module_imports(package, "ssdd_ext.ops.native") == []


def test_backend_reads_no_environment(backend):
    assert environment_reads(backend) == []


def test_scikit_learn_is_optional_for_the_backend(backend):
    assert library_imports(backend, "sklearn", {"sklearn", "bench"}) == []


def test_distillation_uses_only_public_names(root, distillation):
    assert private_uses(distillation, "ssdd_ext", public_names(root / "ssdd_ext" / "__init__.py")) == []


# --- the checkers must be able to fail ------------------------------------------------------------------


def small(tree, files) -> Package:
    return Package(tree({f"p/{name}": text for name, text in files.items()}) / "p", "p")


def test_arrows_are_counted_once_and_without_the_face(tree):
    files = {"__init__.py": "from .d import x", "a.py": "from p import d", "b.py": "import p.a\nfrom .a import y"}
    files |= {"c.py": "from . import z", "d/__init__.py": "from .x import f", "d/x.py": "from ..a import g"}
    assert arrows(small(tree, files)) == {("a", "d"), ("b", "a"), ("d", "a")}


def test_face_checker_objects(tree):
    files = {"__init__.py": "from .d import x", "a.py": "from p import d", "cli.py": "import p"}
    files["d.py"] = "from p import x"
    assert face_imports(small(tree, files)) == ["d.py:1: p.d imports p.x"]


def test_shadow_checker_objects(tree):
    files = {"__init__.py": "from .a import f", "a.py": "", "d/__init__.py": "from .x import x", "d/x.py": ""}
    assert shadowed_modules(small(tree, files)) == ["__init__.py:1: p.d imports p.d.x.x: shadows the module p.d.x"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("krr.py", "from . import _C"),
        ("krr.py", "from ._C import f"),
        ("krr.py", "import ssdd_ext._C"),
        ("ops.py", "try:\n    from . import _C\nexcept ImportError:\n    _C = None"),
        ("ops.py", "def f():\n    from ssdd_ext import _C"),
        ("krr.py", "import importlib\nimportlib.import_module('ssdd_ext._C')"),
    ],
)
def test_native_import_checker_objects(tree, name, text):
    good = small(tree, {"ops.py": "from . import _C", "krr.py": "import torch._C"})
    assert native_module_imports(good, "p.ops") == []
    assert native_module_imports(small(tree, {name: text}), "p.ops")


def test_library_checker_objects(tree):
    files = {
        "a.py": "from .lib import f\nimport lib",
        "lib/__init__.py": "import lib",
        "lib/b.py": "from lib.c import g",
    }
    assert library_imports(small(tree, files), "lib", "lib") == ["a.py:2: p.a imports lib"]


@pytest.mark.parametrize(
    "text", ["import os\nos.environ['X']", "from os import getenv", "import os as o\no.getenv('X')"]
)
def test_environment_checker_objects(tree, text):
    assert len(environment_reads(small(tree, {"a.py": text}))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from lib import hidden",
        "from lib.room import krr",
        "import lib.room",
        "import lib\nlib.hidden()",
        "import lib as l\nl._x",
    ],
)
def test_public_names_checker_objects(tree, text):
    public = public_names(tree({"lib.py": "__all__ = ['krr']"}) / "lib.py")
    good = small(tree, {"a.py": "import lib\nfrom lib import krr\nlib.krr()"})
    assert private_uses(good, "lib", public) == []
    assert private_uses(small(tree, {"a.py": text}), "lib", public)
