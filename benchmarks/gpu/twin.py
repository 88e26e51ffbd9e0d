"""The host twin of the CUDA kernels (tests/simt): build it, and read what a call launches and what its kernels
access."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def readable(names: list[str]) -> dict[str, str]:
    """Return, per mangled kernel, its name as in the source: 'tensor_kernel<true, false>'."""
    filt = shutil.which("c++filt")
    if not filt or not names:
        return {n: n for n in names}
    lines = subprocess.run([filt], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for line in lines.splitlines():
        text = line.replace("ssdd::cuda::", "").replace("(anonymous namespace)::", "")
        text = re.sub(r"^void ", "", re.sub(r"_NV_ANON_NAMESPACE::|_GLOBAL__N__\w+::", "", text))
        short.append(re.sub(r"\(.*$", "", text))
    return dict(zip(names, short, strict=True))


def kernels(program: Path) -> dict[str, str]:
    """Return every kernel in a program of the twin: its address, as the program prints it, and its name."""
    places: dict[str, int] = {}
    for line in run("nm", program).splitlines():
        if match := re.match(r"([0-9a-f]+) \w (\S+)$", line):
            places[match.group(2)] = int(match.group(1), 16)
    start = places.get("__executable_start", 0)  # a shared object has none and starts at 0
    mangled = [n for n in places if "_kernel" in n and n.startswith("_ZN4ssdd4cuda12_GLOBAL__N_1")]
    names = readable(mangled)
    return {f"{places[n] - start:x}": name for n, name in names.items() if re.match(r"\w+_kernel(<[^>]*>)?$", name)}


@lru_cache(None)
def build(target: str = "simt_rows") -> Path:
    tools = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    if not cmake or not ninja:
        raise SystemExit("no cmake or no ninja: the twin cannot be built")
    folder = ROOT / "build" / "simt-plain"
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DSANITIZE="]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:  # tests build there too, in two processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(cmake, "-S", ROOT / "tests" / "simt", "-B", folder, "-G", "Ninja", *options)
        run(cmake, "--build", folder, "-j", "2", "--target", target)
    return folder / target


@lru_cache(None)
def names_of(program: Path) -> dict[str, str]:
    return kernels(program)


def ask(what: str, *words: str | int) -> dict[str, list[dict[str, Any]]]:
    """Run simt_rows WHAT WORDS...; return its launches and accesses, with the kernels' names."""
    program = build()
    command = [str(program), what, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    for rows in found.values():
        for row in rows:
            row["kernel"] = names_of(program)[row["kernel"]]
    return found


# The counted calls: sizes that the twin runs in seconds, with rows aligned like those of real problems.
CALLS: list[tuple[str | int, ...]] = (
    [
        (t, *call)
        for t in ("float", "double")
        for call in (
            ("krr", 2, 72, 64, 256, 64, "low_rank", "low_rank", "all"),
            ("krr", 2, 72, 64, 128, 32, "dense", "dense"),
            ("krr", 1, 72, 64, 128, 32, "low_rank", "mixed"),
            ("krr", 1, 80, 64, 64, 32, "primal", "primal"),
            ("rbf", 1, 72, 64, 96, 32),
            ("rbf", 1, 72, 64, 96, 32, "products"),
            ("krr", 2, 72, 64, 128, 32, "low_rank", "low_rank", "fused"),
            ("rbf", 2, 72, 64, 96, 32, "fused"),
            ("rbf", 1, 72, 64, 96, 32, "all", "far"),
            ("matern_5", 1, 72, 64, 96, 32),
            ("laplace_1", 1, 72, 64, 96, 32),
            ("krr", 1, 256, 64, 64, 64, "low_rank", "low_rank"),
            ("cholesky", 5, 32, 32),
            ("cholesky", 2, 128, 96),
            ("cholesky", 66, 40, 64),
            ("cholesky", 1, 256, 64),
            ("cholesky", 1, 240, 1),
        )
    ]
    + [("float", "krr", 1, s, 64, 256, c, "low_rank", "low_rank", "all", "one_pass") for s, c in ((16, 16), (72, 12))]
    + [("float", "cholesky", 1, 256, 0, "cluster")]
    + [("double", kernel, 1, 72, 64, 96, 32) for kernel in ("arc_cosine_0", "arc_cosine_1", "nngp", "ntk")]
    + [
        ("float", "product", 1, 128, 128, 128, f"{a}-{a_type}", f"{b}-{b_type}", tile)
        for a in ("k", "across")
        for b in ("k", "across")
        for a_type, b_type, tile in (
            ("float", "float", 64),
            ("float", "float", 128),
            ("bf16", "bf16", 64),
            ("bf16", "bf16", 128),
            ("f16", "f16", 64),
            ("f16", "f16", 128),
            ("float", "bf16", 64),
            ("bf16", "float", 64),
            ("bf16", "f16", 64),
        )
    ]
    + [
        ("float", "product", 1, 128, 128, 128, f"{a}-float", f"{b}-float", 128, "halves")
        for a in ("k", "across")
        for b in ("k", "across")
    ]
)
SCALARS = ("product.cuh", "product_halves.cu")
# Kernels that plainly read and write one number or one row per problem are not counted.
KEYS = ("loads", "load_sectors", "load_waste", "operand_waste", "stores", "store_sectors", "store_waste", "ways")
NO_ACCESSES: dict[str, float] = dict.fromkeys(KEYS, 0)


def accesses() -> dict[str, dict[str, float]]:
    """Return, per kernel over CALLS: requests to global memory, sectors per request, the ratio to the fewest sectors
    that hold the bytes (loads and stores separately), and the worst bank conflict."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for call in CALLS:
        for row in ask("counts", *call)["accesses"]:
            lines.setdefault(row["kernel"], []).append(row)
    table = {}
    for kernel, rows in lines.items():
        table[kernel] = {"ways": max((r["ways"] for r in rows if r["space"] == "shared"), default=0)}
        for space in ("load", "store"):
            own = [r for r in rows if r["space"] == space]
            requests, sectors, least = (sum(r[key] for r in own) for key in ("requests", "sectors", "least_sectors"))
            table[kernel] |= {
                f"{space}s": requests,
                f"{space}_sectors": sectors / max(1, requests),
                f"{space}_waste": sectors / max(1, least),
            }
        # Without a product's epilogue and its scales.
        product = kernel.startswith(("tensor", "half", "halves", "mixed", "plain"))
        own = [r for r in rows if r["space"] == "load" and not (product and r["line"].startswith(SCALARS))]
        sectors, least = (sum(r[key] for r in own) for key in ("sectors", "least_sectors"))
        table[kernel]["operand_waste"] = sectors / max(1, least)
    return table
