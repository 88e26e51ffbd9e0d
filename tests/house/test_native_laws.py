"""The laws about csrc/, checked on its #includes and directives, and on the built module."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
SUFFIXES = {".h", ".hpp", ".cpp", ".cu", ".cuh"}

# The native core links neither a framework nor a vendor's solver, and does not use Python.
FORBIDDEN_ANYWHERE = re.compile(
    r"^(torch|ATen|c10|caffe2)/|^(cublas|cusolver|cusparse|cudnn|cutlass|mkl|cblas|lapacke)"
)
ONLY_IN_BINDINGS = re.compile(r"^pybind11/|^Python\.h$")
ONLY_IN_CUDA = re.compile(r"^cuda|^cooperative_groups|^mma\.h$|^simt\.cuh$")
CUDA_CONDITION = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*(CUDA|NVCC)", re.MULTILINE)


def sources(csrc: Path) -> list[Path]:
    return sorted(p for p in csrc.rglob("*") if p.suffix in SUFFIXES)


def without_comments(text: str) -> str:
    """Return the source with blank comments and the same lines."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL)


def matches(pattern: re.Pattern, path: Path, csrc: Path, what: str) -> list[str]:
    text = without_comments(path.read_text())
    lines = [text.count("\n", 0, m.start()) + 1 for m in pattern.finditer(text)]
    return [f"{path.relative_to(csrc)}:{line}: {what}" for line in lines]


def bad_includes(csrc: Path) -> list[str]:
    offences = []
    for path in sources(csrc):
        name = path.relative_to(csrc)
        room = name.parts[0] if len(name.parts) > 1 else "."
        for include in INCLUDE.findall(without_comments(path.read_text())):
            if FORBIDDEN_ANYWHERE.search(include):
                offences.append(f"{name}: includes {include}; the core links no framework")
            if ONLY_IN_BINDINGS.search(include) and str(name) != "bindings.cpp" and room != "bindings":
                offences.append(f"{name}: includes {include}; only bindings.cpp and bindings/ know Python")
            if room in ("cpu", "cuda") and "bindings/" in include:
                offences.append(f"{name}: includes {include}; the core does not know its bindings")
            if ONLY_IN_CUDA.search(include) and room != "cuda":
                offences.append(f"{name}: includes {include}; CUDA stays in csrc/cuda")
            target = resolve(include, path, csrc)
            if target is None:
                continue
            target_room = target.relative_to(csrc).parts[0] if target.parent != csrc else "."
            if room in ("cpu", "cuda") and target_room not in (room, "."):
                offences.append(f"{name}: includes {include}; cpu and cuda do not know each other")
            if room == "." and path.suffix == ".h" and target_room != ".":
                offences.append(f"{name}: includes {include}; a contract knows no implementation")
    return offences


def resolve(include: str, path: Path, csrc: Path) -> Path | None:
    for base in (path.parent, csrc):
        if (target := (base / include).resolve()).is_file() and csrc.resolve() in target.parents:
            return csrc / target.relative_to(csrc.resolve())
    return None


def include_cycles(csrc: Path) -> list[str]:
    edges = {
        p: [t for i in INCLUDE.findall(without_comments(p.read_text())) if (t := resolve(i, p, csrc))]
        for p in sources(csrc)
    }
    cycles, done = [], set()

    def visit(path: Path, trail: list[Path]) -> None:
        if path in trail:
            cycles.append(" -> ".join(str(p.relative_to(csrc)) for p in [*trail[trail.index(path) :], path]))
        elif path not in done:
            for target in edges.get(path, []):
                visit(target, [*trail, path])
            done.add(path)

    for path in edges:
        visit(path, [])
    return cycles


def cuda_conditions(csrc: Path) -> list[str]:
    what = "a backend that is absent is a file, not an #if"
    return [o for p in sources(csrc) for o in matches(CUDA_CONDITION, p, csrc, what)]


def environment_reads(csrc: Path) -> list[str]:
    pattern = re.compile(r"\b(secure_)?getenv\s*\(|\bsetenv\s*\(|\benviron\b")
    what = "no environment variable changes results"
    return [o for p in sources(csrc) for o in matches(pattern, p, csrc, what)]


def unordered_sums(csrc: Path) -> list[str]:
    """Find OpenMP reductions and atomics, which combine in any order: same inputs and threads must give the same
    bits."""
    pattern = re.compile(r"#\s*pragma\s+omp\b[^\n]*(\batomic\b|\breduction\s*\(\s*[+*-])|\batomicAdd\s*\(")
    return [o for p in sources(csrc) for o in matches(pattern, p, csrc, "a sum in no fixed order")]


def tuned_for_this_machine(*files: Path) -> list[str]:
    pattern = re.compile(r"-m(arch|tune|cpu)=native|-ffast-math|-Ofast|-funsafe-math-optimizations")
    return [f"{p.name}: {m.group()}" for p in files for m in pattern.finditer(p.read_text())]


# --- the house ------------------------------------------------------------------------------------------

CHECKERS = [bad_includes, include_cycles, cuda_conditions, environment_reads, unordered_sums]


@pytest.mark.parametrize("checker", CHECKERS)
def test_csrc_keeps_the_laws(root, checker):
    assert sources(root / "csrc"), "no sources: the laws would check nothing"
    assert checker(root / "csrc") == []


def test_absent_cuda_is_a_file(root):
    assert (root / "csrc" / "no_cuda.cpp").is_file()


def test_no_flag_ties_the_wheel_to_this_machine(root):
    names = ("CMakeLists.txt", "csrc/CMakeLists.txt", "pyproject.toml", "Makefile")
    assert tuned_for_this_machine(*(root / name for name in names)) == []


def test_native_module_links_only_the_runtime():
    """The module links no libtorch, no BLAS and no CUDA library. It links libgomp by its SONAME, without a search
    path."""
    import ssdd_ext  # noqa: F401  (torch's libraries first)

    module = importlib.util.find_spec("ssdd_ext._C")
    assert module is not None and module.origin, "ssdd_ext._C was not built"
    if not shutil.which("readelf"):
        pytest.skip("NO readelf HERE: the module's libraries were not checked")
    command = ["readelf", "-d", module.origin]
    dynamic = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert needed <= {
        "libgomp.so.1",
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "libpthread.so.0",
        "libdl.so.2",
        "librt.so.1",
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
    }
    assert "libgomp.so.1" in needed
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


# --- the checkers must be able to fail ------------------------------------------------------------------


@pytest.mark.parametrize(
    "checker, name, text",
    [
        (bad_includes, "cpu/a.cpp", "#include <torch/extension.h>"),
        (bad_includes, "cpu/a.cpp", "#include <ATen/ATen.h>"),
        (bad_includes, "cuda/a.cu", "# include <cublas_v2.h>"),
        (bad_includes, "cpu/a.cpp", "#include <pybind11/pybind11.h>"),
        (bad_includes, "tensor.h", "#include <Python.h>"),
        (bad_includes, "cpu/a.cpp", "#include <cuda_runtime.h>"),
        (bad_includes, "cpu/a.cpp", '#include "../cuda/b.cuh"'),
        (bad_includes, "op.h", '#include "cpu/c.h"'),
        (include_cycles, "tensor.h", '#include "op.h"'),
        (cuda_conditions, "cpu/a.cpp", "#ifdef SSDD_CUDA"),
        (cuda_conditions, "bindings.cpp", "#if defined(WITH_CUDA) && 1"),
        (environment_reads, "cpu/a.cpp", 'auto x = std::getenv("X");'),
        (unordered_sums, "cpu/a.cpp", "#pragma omp parallel for reduction(+ : sum)"),
        (unordered_sums, "cpu/a.cpp", "  #pragma omp atomic\n"),
    ],
)
def test_native_checkers_object(tree, checker, name, text):
    good = {
        "op.h": '#include "tensor.h"',
        "tensor.h": "#include <cstdint>",
        "bindings.cpp": '#include <pybind11/pybind11.h>\n#include "op.h"',
        "cpu/a.cpp": '#include "../op.h"\n#include "c.h"\n// getenv("X")\n#if __AVX2__\n/*\n#ifdef CUDA */',
        "cpu/c.h": "#pragma omp parallel for reduction(max : status)",
        "cuda/b.cuh": "#include <cuda_runtime.h>",
    }
    csrc = tree(good)
    assert checker(csrc) == []
    (csrc / name).write_text(text)
    assert len(checker(csrc)) == 1


def test_flags_checker_objects(tree):
    assert tuned_for_this_machine(tree({"x": "add_compile_options(-march=native)"}) / "x")
