"""Packaging: one wheel with two packages, no torch in the build, no bundled libraries."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = ("ssdd/report/report.css", "ssdd/report/report.js")
SHIPPED = ("ssdd/studies/published/cifar100.toml", "ssdd/studies/small-architectures.toml")

installed_only = pytest.mark.skipif(
    os.environ.get("SSDD_TEST_INSTALLED") != "1", reason="NOT THE INSTALLED WHEEL: run by `make test`"
)


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel_files():
    return [str(f) for f in importlib.metadata.files("ssdd") or []]


@installed_only
@pytest.mark.parametrize("package", ["ssdd_ext", "ssdd"])
def test_tests_see_the_installed_wheel(package, root):
    module = __import__(package)
    assert module.__file__ is not None
    folder = Path(module.__file__).resolve().parent
    assert folder.parent.name == "site-packages"
    assert folder not in (root / "ssdd_ext", root / "python" / "ssdd")
    assert str(root) not in sys.path and "" not in sys.path


@installed_only
def test_wheel_holds_what_it_should(wheel_files):
    native = [f for f in wheel_files if f.endswith(".so")]
    assert len(native) == 1 and native[0].startswith("ssdd_ext/_C."), native
    for name in ("ssdd_ext/py.typed", "ssdd_ext/_C.pyi", "ssdd/py.typed", "ssdd/studies/demo.toml", *SHIPPED, *PAGE):
        assert name in wheel_files
    assert any(f.endswith("licenses/LICENSE") for f in wheel_files)
    strays = [f for f in wheel_files if Path(f).suffix in (".cpp", ".h", ".cu", ".o", ".txt", ".cmake")]
    assert [f for f in strays if "dist-info" not in f] == []
    tops = {f.split("/")[0] for f in wheel_files} - {".."}  # .. : the installed script
    assert {t for t in tops if not t.endswith(".dist-info")} == {"ssdd_ext", "ssdd"}


@installed_only
def test_the_source_tree_and_the_wheel_hold_the_same_modules(root, wheel_files):
    for folder, package in ((root / "ssdd_ext", "ssdd_ext"), (root / "python" / "ssdd", "ssdd")):
        source = {f"{package}/{path.relative_to(folder)}" for path in folder.rglob("*.py")}
        assert source == {f for f in wheel_files if f.startswith(f"{package}/") and f.endswith(".py")}


@installed_only
def test_metadata(project):
    import ssdd_ext

    metadata = importlib.metadata.metadata("ssdd")
    assert metadata["Version"] == ssdd_ext.__version__
    needs = importlib.metadata.requires("ssdd") or []
    assert {n for n in needs if "extra ==" not in n} == {"torch>=2.11", "numpy>=1.26", "scipy>=1.11.2"}
    assert set(metadata.get_all("Provides-Extra") or []) == set(project["project"]["optional-dependencies"])
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="ssdd")
    assert script.value == "ssdd.cli:main" and callable(script.load())


def test_build_needs_no_torch(project, root):
    assert not [r for r in project["build-system"]["requires"] if re.match("torch|numpy|scipy", r)]
    for name in ("CMakeLists.txt", "csrc/CMakeLists.txt"):
        commands = re.sub(r"#[^\n]*", "", (root / name).read_text())
        assert not re.search(r"find_package\s*\(\s*(Torch|BLAS|LAPACK|MKL)", commands, re.IGNORECASE)


@installed_only
def test_isolated_build(root, tmp_path):
    """`pip install .` creates its own build environment, with the build requirements and without torch.

    There it configures, and compiles one file of the core and the file that knows Python, without optimisation. The
    wheel of `make test` has compiled, linked and installed the same sources.
    """
    command = [sys.executable, "-m", "pip", "wheel", str(root), "--no-deps", "-w", str(tmp_path / "wheel")]
    command += [f"--config-settings=build-dir={tmp_path / 'build'}", "--config-settings=cmake.define.CUDA=OFF"]
    command += [
        "--config-settings=cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0",
        "--config-settings=install.components=none",
    ]
    objects = ["csrc/CMakeFiles/ssdd_cpu.dir/cpu/dispatch.cpp.o", "CMakeFiles/_C.dir/csrc/bindings.cpp.o"]
    command += [f"--config-settings=build.targets={';'.join(objects)}"]
    environment = os.environ | {"PIP_CONSTRAINT": str(root / "constraints.txt")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode and re.search("No matching distribution|NewConnectionError|Temporary failure", output):
        pytest.skip("NO PACKAGE INDEX HERE: the isolated build was not tried")
    assert done.returncode == 0, output
    assert len(list((tmp_path / "wheel").glob("ssdd-*.whl"))) == 1
    assert [name for name in objects if not (tmp_path / "build" / name).is_file()] == []


def test_the_version_stands_in_one_place(project, root):
    assert "version" in project["project"]["dynamic"]
    (version,) = re.findall(r'^__version__ = "(.*)"$', (root / "ssdd_ext" / "__init__.py").read_text(), re.MULTILINE)
    globs = ("csrc/**/*", "ssdd_ext/*.py", "python/**/*.py", "CMakeLists.txt", "pyproject.toml")
    places = [p for g in globs for p in root.glob(g) if p.suffix in (".h", ".cpp", ".cu", ".py", ".txt", ".toml")]
    assert [p.name for p in places if f'"{version}"' in p.read_text()] == ["__init__.py"]


def test_constraints_pin_every_dependency(project, root):
    pins = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), f"not a plain pin: {line!r}"
        name, version = line.split("==")
        pins[name.lower().replace("_", "-")] = version
    extras = project["project"]["optional-dependencies"]
    reference = project["project"]["dependencies"] + extras["distill"] + extras["test"] + extras["docs"]
    reference += project["build-system"]["requires"]
    names = [re.split("[<>=]", w)[0].lower() for w in reference]
    assert [n for n in [*names, "cmake", "ninja"] if n not in pins] == []
    assert pins["torch"] == "2.13.0"


def test_the_longest_files_are_there(root):
    text = (root / "tests" / "conftest.py").read_text()
    longest = re.findall(r'^    "(.+)",$', text[text.index("LONGEST = [") :].split("]")[0], re.MULTILINE)
    assert len(longest) > 10 and [name for name in longest if not (root / "tests" / name).exists()] == []


# --- CUDA=AUTO|ON|OFF -----------------------------------------------------------------------------------


def configure(root: Path, build: Path, choice: str) -> subprocess.CompletedProcess:
    """Configure the build as on a machine without nvcc."""
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    tools = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    assert cmake and ninja, "cmake and ninja are build requirements"
    defined = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_CUDA_COMPILER": "NOTFOUND",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11,
        "CUDA": choice,
    }
    options = [f"-D{name}={value}" for name, value in defined.items()]
    command = [cmake, "-S", str(root), "-B", str(build), "-G", "Ninja", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_cuda_on_without_nvcc_is_an_error(root, tmp_path):
    done = configure(root, tmp_path, "ON")
    assert done.returncode != 0
    assert "CUDA=ON, but" in done.stderr


def test_cuda_choice_is_checked(root, tmp_path):
    done = configure(root, tmp_path, "yes please")
    assert done.returncode != 0
    assert "AUTO, ON or OFF" in done.stderr


@pytest.mark.parametrize("choice", ["AUTO", "OFF"])
def test_without_nvcc_the_build_is_a_cpu_build(root, tmp_path, choice):
    done = configure(root, tmp_path, choice)
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels built: OFF" in done.stdout


# --- one thread pool ------------------------------------------------------------------------------------


def test_another_system_than_linux_is_refused_in_words(root, tmp_path):
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    command = [cmake, "-S", root, "-B", tmp_path, "-DCMAKE_SYSTEM_NAME=FreeBSD", "-DCMAKE_CXX_COMPILER_WORKS=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "ssdd is built for Linux; got FreeBSD" in done.stderr, done.stderr


LISTED = "75 80 86 87 89 90 90a 100 110 120"


@pytest.mark.parametrize(
    "known, all_gpus, present, expected",
    [
        (LISTED, "ON", "9.0", "80-real;86-real;90-real;100;120"),
        (LISTED, "OFF", "", "80-real;86-real;90-real;100;120"),  # no GPU, or no driver
        (LISTED, "OFF", "9.0 9.0 12.0", "90-real;120-real"),
        (LISTED, "OFF", "10.3", "80-real;86-real;90-real;100;120"),  # a GPU that the compiler does not know
        ("52 80 86 89 90", "ON", "", "80-real;86-real;90"),  # CUDA before 12.8
        ("90 100 103", "ON", "", "90-real;100"),
    ],
)
def test_default_architectures_are_those_of_the_machine_or_all(root, tmp_path, known, all_gpus, present, expected):
    def program(name: str, lines: list[str]) -> Path:
        file = tmp_path / name
        file.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines) + f"exit {int(not lines)}\n")
        file.chmod(0o755)
        return file

    program("nvidia-smi", present.split())
    nvcc, script = program("nvcc", [f"compute_{one}" for one in known.split()]), tmp_path / "ask.cmake"
    script.write_text(
        f"include({root}/csrc/architectures.cmake)\nssdd_cuda_architectures(found {nvcc} {all_gpus})\n"
        'message("${found}")\n'
    )
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([cmake, "-P", script], capture_output=True, text=True, env=environment)
    assert done.stderr.strip() == expected
    assert "CUDA kernels for" in done.stdout


@pytest.fixture(scope="module")
def imported():
    """The modules and the OpenMP runtimes of a process that imports the backend and nothing else."""
    code = (
        "import ssdd_ext, sys\n"
        "print(*sys.modules)\n"
        "lines = open('/proc/self/maps').readlines() if sys.platform == 'linux' else []\n"
        "print(*{line.split()[-1] for line in lines if 'gomp' in line or 'iomp' in line})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules, runtimes = done.stdout.splitlines()
    return set(modules.split()), set(runtimes.split())


def test_one_openmp_runtime_is_loaded(imported):
    """Only torch's libgomp is loaded: two pools on the same cores cost tens of milliseconds at every switch."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("NO /proc HERE: loaded libraries were not listed")
    assert len(imported[1]) == 1, imported[1]


def test_the_import_does_not_bring_the_compiler(imported):
    """torch._dynamo takes as long to import as torch itself."""
    assert "torch" in imported[0] and "torch._dynamo" not in imported[0]
