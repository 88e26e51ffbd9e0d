"""DESIGN's laws about Python, read from the syntax trees: who may import whom, and what nobody may do.

The checkers take a directory and return the offences as `file:line: what`, so each is also
shown to fail.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# A room imports only from rooms left of it. Rooms in one tuple do not know each other. The face, __init__, stands right
# of all rooms, but for the command line of ssdd: that one is a user of the face.
ROOMS = {
    "ssdd_ext": (
        ("checks",), ("kernels", "ridge"), ("plan",), ("reference",), ("ops",), ("api",), ("bench",),
        ("testing",),
    ),
    "ssdd": (
        ("config",), ("artifact",), ("checkpoint",), ("data", "models"), ("teachers",), ("selection",), ("parallel",),
        ("distillation",), ("evaluation",), ("studies",), ("report",), ("__init__",), ("cli",),
    ),
}  # fmt: skip
FACE = "__init__"


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    source: str  # importing module
    target: str  # imported module, absolute
    name: str | None  # imported name, where it is not a module itself

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
        """The first name below the package; the package itself is its face."""
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


def rooms_out_of_order(package: Package, rooms) -> list[str]:
    position = {"_C": -1, FACE: len(rooms) + 1, "__main__": len(rooms) + 2}
    position |= {room: i for i, together in enumerate(rooms) for room in together}
    offences = [
        f"{module}: no room of this name in the layout"
        for module in package.trees
        if package.room(module) not in position
    ]
    for i in package.imports():
        if i.target.split(".")[0] != package.name:
            continue
        source, target = package.room(i.source), package.room(i.target)
        if source != target and position.get(target, 0) >= position.get(source, 0):
            offences.append(f"{i}: {target} does not stand left of {source}")
    return offences


def arrows(package: Package) -> set[tuple[str, str]]:
    """(importing room, imported room); the face is no room."""
    rooms = {
        (package.room(i.source), package.room(i.target))
        for i in package.imports()
        if i.target.split(".")[0] == package.name
    }
    return {(source, target) for source, target in rooms if source != target and FACE not in (source, target)}


def import_cycles(package: Package) -> list[str]:
    edges: dict[str, set[str]] = {module: set() for module in package.trees}
    for i in package.imports():
        if i.target in edges and i.target != i.source:
            edges[i.source].add(i.target)
    cycles, done = [], set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            cycles.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(edges[module]):
                visit(target, [*trail, module])
            done.add(module)

    for module in edges:
        visit(module, [])
    return cycles


def is_native_module(dotted: str) -> bool:
    return dotted.split(".")[-1] == "_C" and not dotted.startswith("torch")


def native_module_imports(package: Package, allowed: str | None) -> list[str]:
    """Imports of _C by anybody but `allowed`, and any in a `try`, a branch, a function, or by its name."""
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


def shadowed_modules(package: Package) -> list[str]:
    """Modules that cannot be reached as an attribute, because their package exports another thing of that name."""
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
    """Uses of `library` in `package` that go past the names in its __all__."""
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


def imports_of(package: Package, library: str) -> list[str]:
    return [str(i) for i in package.imports() if i.target.split(".")[0] == library]


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


def test_rooms_import_only_from_the_left(package):
    assert rooms_out_of_order(package, ROOMS[package.name]) == []


def test_every_room_of_the_layout_exists(package):
    rooms = {room for together in ROOMS[package.name] for room in together}
    missing = rooms - set(map(package.room, package.trees))
    assert not missing, f"named in the layout, not built: {sorted(missing)}"


def test_the_rooms_of_the_distillation_know_few_others(distillation):
    rooms = [room for together in ROOMS["ssdd"] for room in together if room != FACE]
    found = arrows(distillation)
    assert len(rooms) == 13 and len(found) <= 39, sorted(found)  # of 78


def test_the_command_line_uses_the_face(distillation):
    known = {target for source, target in arrows(distillation) if source == "cli"}
    assert known == {"config", "report"}


def test_no_name_of_the_distillation_shadows_a_module(distillation):
    found = shadowed_modules(distillation)
    assert [text for text in found if "ssdd.cli imports" not in text] == []  # verbs: nobody imports the command line


def test_no_import_cycles(package):
    assert import_cycles(package) == []


def test_only_ops_imports_the_native_module(package):
    assert native_module_imports(package, "ssdd_ext.ops.native") == []


def test_backend_reads_no_environment(backend):
    assert environment_reads(backend) == []


def test_backend_knows_nothing_of_the_distillation(backend):
    assert imports_of(backend, "ssdd") == []


def test_distillation_uses_only_public_names(root, distillation):
    assert private_uses(distillation, "ssdd_ext", public_names(root / "ssdd_ext" / "__init__.py")) == []


# --- the checkers must be able to fail ------------------------------------------------------------------


def small(tree, files) -> Package:
    return Package(tree({f"p/{name}": text for name, text in files.items()}) / "p", "p")


LINE = (("a",), ("b", "c"), ("d",))


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.py", "from .b import x"),  # a room to the right
        ("b.py", "from p.c import x"),  # a neighbour that one does not know
        ("b.py", "from . import c"),
        ("b.py", "def f():\n    import p.d"),  # hidden in a function
        ("a.py", "from p import x"),  # a room does not import the face
        ("stray.py", ""),  # not in the layout
    ],
)
def test_rooms_checker_objects(tree, name, text):
    good = {"__init__.py": "from .d import x", "a.py": "", "b.py": "from .a import x", "d.py": "import p.b"}
    good["c.py"] = ""
    assert rooms_out_of_order(small(tree, good), LINE) == []
    assert len(rooms_out_of_order(small(tree, {name: text}), LINE)) == 1


def test_arrows_are_counted_once_and_without_the_face(tree):
    files = {"__init__.py": "from .d import x", "a.py": "from p import d", "b.py": "import p.a\nfrom .a import y"}
    files |= {"c.py": "from . import z", "d/__init__.py": "from .x import f", "d/x.py": "from ..a import g"}
    assert arrows(small(tree, files)) == {("a", "d"), ("b", "a"), ("d", "a")}


def test_rooms_checker_reads_folders(tree):
    folder = {"d/__init__.py": "", "d/x.py": "from . import y\nfrom ..a import z", "d/y.py": ""}
    package = small(tree, folder | {"a.py": ""})
    assert rooms_out_of_order(package, LINE) == []
    assert len(rooms_out_of_order(small(tree, {"a.py": "from .d.x import z"}), LINE)) == 1


def test_shadow_checker_objects(tree):
    files = {"__init__.py": "from .a import f", "a.py": "", "d/__init__.py": "from .x import x", "d/x.py": ""}
    assert shadowed_modules(small(tree, files)) == ["__init__.py:1: p.d imports p.d.x.x: shadows the module p.d.x"]


def test_cycle_checker_objects(tree):
    folder = {"d/__init__.py": "from . import x", "d/x.py": "from .y import f", "d/y.py": "from . import x"}
    assert import_cycles(small(tree, folder)) == ["p.d.x -> p.d.y -> p.d.x"]


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
