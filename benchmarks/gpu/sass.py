#!/usr/bin/env python
"""Measures of the CUDA kernels without a GPU: compiled for one architecture and disassembled, run on the host twin and
counted, and the resulting floors for the calls of the speed table.

    python benchmarks/gpu/sass.py                  the tables to standard output
    python benchmarks/gpu/sass.py --out FOLDER     sass.md and sass.json there

Needs nvcc, a C++ compiler and cmake; the disassembler comes from PyPI (nvidia-cuda-nvdisasm). Registers, stack and
shared memory are ptxas's; the inner loop is the innermost loop with most multiply-adds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

import floors
import twin
from twin import ROOT, readable, run

INCLUDED = [ROOT / "csrc", ROOT / "csrc" / "cuda"]
FLAGS = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    "-diag-suppress",
    "554",
    '-DSSDD_CUDA_ARCHITECTURES=""',
    *(f"-I{folder}" for folder in INCLUDED),
]
COMMITTED = ROOT / "benchmarks" / "results" / "sass.json"

WORKING = 16 * 32  # elements: a strip's diagonal block, transposed
# Dynamic shared memory of a launch in bytes, for kernels that take any; block sizes are in threads_of.
DYNAMIC = {
    "tensor_kernel<64": 640 * 64,
    "tensor_kernel<128": 576 * 128,
    "halves_kernel": 128 * (4 * 144 + 8 * 80),
    **{f"half_kernel<matrix::{element}, {size}": 640 * size for element in ("Bf16", "Half") for size in (64, 128)},
    "mixed_kernel": 40960,
    "plain_kernel<float": 26112,
    "plain_kernel<double": 50688,
    "distance_kernel<float>": 26112,
    "distance_kernel<double>": 50688,
    "block_kernel<float>": (128 * 132 + 256 + WORKING + 128 * 16) * 4 + 64,
    "block_kernel<double>": (128 * 130 + 256 + WORKING + 128 * 16) * 8 + 64,
    "warp_kernel<float>": 4 * 4 * (32 * 36 + 32 + WORKING + 32 * 16),
    "warp_kernel<double>": 4 * 8 * (32 * 34 + 32 + WORKING + 32 * 16),
    # Of a network of three hidden layers.
    **{f"angle_slope_kernel<{network}>": 3 * 4 * 128 * 8 for network in ("Nngp", "Ntk")},
    "solve_kernel<8, float>": (128 * 132 + 128 * 9) * 4 + 48,
    "solve_kernel<8, double>": (128 * 130 + 128 * 9) * 8 + 48,
    "solve_kernel<32, float>": (128 * 132 + 128 * 33) * 4 + 48,
    "solve_kernel<32, double>": (128 * 130 + 128 * 33) * 8 + 48,
    "fused_kernel<float": (128 * 132 + 256 + 2 * 128 * 20) * 4 + 64,
    "fused_kernel<double": (128 * 130 + 256 + 2 * 128 * 18) * 8 + 64,
    # S=10 Q=1024 D=2048 C=10; query_kernel: B=64 S=100 Q=256 D=512 C=10.
    "few_kernel": 109560,
    "finish_kernel": 10936,
    "query_kernel": 87072,
    "cluster_kernel": (9 * 64 * 68 + 2 * 64 + 3 * (32 * 20 + 2 * 32 * 4)) * 4,
    "factor_tiles_kernel<float>": (2 * 5120 + 64 * 68) * 4 + 64,
    "factor_tiles_kernel<double>": (2 * 2112 + 64 * 66) * 8 + 64,
    "solve_tiles_kernel<float>": (2 * 5120 + 2 * 64 * 68) * 4 + 64,
    "solve_tiles_kernel<double>": (2 * 2112 + 2 * 64 * 66) * 8 + 64,
}
# One multiprocessor of an H100.
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 228 << 10, 2048, 32
# Turns of the inner loop in one of the loop around it, whose instructions are counted with them.
TURNS = {"tensor_kernel<128>": 2}

KINDS = {
    "HMMA": r"HMMA",
    "FFMA": r"FFMA|FADD|FMUL",
    "DFMA": r"DFMA|DADD|DMUL",
    "LDS": r"LDS(\.|$)",
    "STS": r"STS",
    "LDSM": r"LDSM",
    "LDG": r"LDG(\.|$)|LD\.",
    "LDG read-only": r"LDG.*CONSTANT",
    "LDGSTS": r"LDGSTS",
    "STG": r"STG|ST\.E",
    "SHFL": r"SHFL",
    "MUFU": r"MUFU",
    "BAR": r"BAR",
    "local": r"LDL|STL",
}


def tool(name: str) -> str | None:
    """Return the path of a tool on PATH, or in the packages of this interpreter."""
    found = shutil.which(name)
    if found:
        return found
    for place in map(Path, sys.path):
        for candidate in place.glob(f"nvidia/*/bin/{name}"):
            candidate.chmod(candidate.stat().st_mode | 0o111)
            return str(candidate)
    return None


def compile_source(source: Path, folder: Path, architecture: str) -> tuple[Path, str]:
    """Return the cubin, and ptxas's report on it."""
    cubin = folder / f"{source.stem}.cubin"
    output = run("nvcc", *FLAGS, f"-arch={architecture}", "-cubin", "-Xptxas=-v", source, "-o", cubin)
    return cubin, output


def resources(output: str) -> dict[str, dict[str, int]]:
    """Return, per mangled kernel: registers, stack, spills, static shared memory."""
    table: dict[str, dict[str, int]] = {}
    for part in output.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]

        def number(pattern: str, text: str = part) -> int:
            match = re.search(pattern, text)
            return int(match.group(1)) if match else 0

        table[name] = {
            "registers": number(r"Used (\d+) registers"),
            "stack": number(r"(\d+) bytes stack frame"),
            "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
            "shared": number(r"(\d+) bytes smem"),
        }
    return table


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """Return, per mangled kernel, its lines: labels ('.L_x_1:') and instructions ('FFMA R0, ...')."""
    nvdisasm = tool("nvdisasm")
    if nvdisasm is None:
        raise SystemExit("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    kernels: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in run(nvdisasm, "-c", cubin).splitlines():
        if match := re.match(r"\s*\.section\s+\.text\.(\S+?),", line):
            lines = kernels.setdefault(match.group(1), [])
        elif match := re.match(r"(\.L_x_\d+):", line):
            lines.append(match.group(1) + ":")
        elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            lines.append(match.group(1))
    return kernels


def opcode(line: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", line).split(" ")[0]


def waits_first(lines: list[str]) -> bool:
    """Return True if a kernel waits for earlier launches before it touches global memory, branches or ends.

    Then no way through its code leads around the wait, or to an access before it.
    """
    before = list(takewhile(lambda name: name != "ACQBULK", (opcode(line) for line in lines)))
    early = r"(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG|CCTL|BRA|BRX|JMP|CALL|EXIT|RET)\b|\.L_"
    return len(before) < len(lines) and "PREEXIT" in before and not any(re.match(early, name) for name in before)


def counts(lines: list[str]) -> dict[str, int]:
    opcodes = [opcode(line) for line in lines if not line.endswith(":")]
    table = {kind: sum(bool(re.match(pattern, o)) for o in opcodes) for kind, pattern in KINDS.items()}
    table["all"] = len(opcodes)
    table["LDS wide"] = sum(bool(re.match(r"LDS\.(64|128)|LDS\.U?\.?(64|128)", o)) for o in opcodes)
    table["LDGSTS wide"] = sum(o.startswith("LDGSTS") and ".128" in o for o in opcodes)
    return table


def widths(lines: list[str], kind: str) -> str:
    """Return how many loads of one kind move 4, 8 and 16 bytes (narrower ones count as 4): '16x4 8x16'."""
    opcodes = [o for o in map(opcode, lines) if re.match(KINDS[kind], o)]
    sizes = [16 if ".128" in o else 8 if ".64" in o else 4 for o in opcodes]
    return " ".join(f"{sizes.count(size)}x{size}" for size in (4, 8, 16) if size in sizes) or "-"


def all_loops(lines: list[str]) -> list[tuple[int, int]]:
    """Return the first and last line of every loop."""
    at = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    loops = []
    for i, line in enumerate(lines):
        match = re.search(r"\bBRA\b.*?(\.L_x_\d+)", line)
        if match and at.get(match.group(1), i) < i:
            loops.append((at[match.group(1)], i))
    return loops


def contains(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]


def innermost_loops(lines: list[str]) -> list[tuple[int, int]]:
    """Return the loops without another one in it."""
    loops = all_loops(lines)
    return [a for a in loops if not any(contains(a, b) for b in loops)]


def find_inner_loop(lines: list[str]) -> tuple[int, int] | None:
    """Return the innermost loop with most multiply-adds, or None without a loop.

    If loops have products on the matrix units, no others count: copies may stand in a loop inside of one.
    """
    loops = {loop: counts(lines[loop[0] : loop[1] + 1]) for loop in all_loops(lines)}
    if any(table["HMMA"] for table in loops.values()):
        loops = {loop: table for loop, table in loops.items() if table["HMMA"]}
    innermost = [a for a in loops if not any(contains(a, b) for b in loops)]

    def work(loop: tuple[int, int]) -> int:
        return loops[loop]["HMMA"] * 64 + loops[loop]["FFMA"] + loops[loop]["DFMA"]

    return max(innermost, key=work, default=None)


def inner_loop(lines: list[str]) -> list[str]:
    """Return the lines of :func:`find_inner_loop`; without a loop, everything."""
    found = find_inner_loop(lines)
    return lines[found[0] : found[1] + 1] if found else lines


def steady_path(loop: list[str]) -> list[str]:
    """Return what one turn of a loop executes far from the edges of a matrix.

    Of all ways through the code it is the one with most products on the matrix units, then most copies of 16 whole
    bytes, then most stores to shared memory, then fewest instructions.
    """
    at = {line[:-1]: i for i, line in enumerate(loop) if line.endswith(":")}
    # From each line to the end of the turn: (the order above), and the instructions themselves.
    best: list[tuple[tuple[int, ...], list[str]] | None] = [None] * (len(loop) + 1)
    best[len(loop)] = ((0, 0, 0, 0), [])
    for i in range(len(loop) - 1, -1, -1):
        line = loop[i]
        jump = re.search(r"\bBRA\b.*?(\.L_x_\d+)", line)
        nexts = [] if re.match(r"BRA\b|EXIT", line) else [i + 1]
        if jump:
            target = at.get(jump.group(1), -1)
            nexts += [target] if target > i else [len(loop)] if target == 0 else []  # a loop inside: once
        ways = [way for way in (best[n] for n in nexts) if way is not None]
        if not ways:
            continue
        score, path = max(ways, key=lambda way: way[0])
        if not line.endswith(":"):
            name = opcode(line)
            whole = name.startswith("LDGSTS") and ".128" in name and "ZFILL" not in name
            score = (
                score[0] + name.startswith("HMMA"),
                score[1] + whole,
                score[2] + name.startswith("STS"),
                score[3] - 1,
            )
            path = [line, *path]
        best[i] = (score, path)
    assert best[0] is not None
    return best[0][1]


# Instructions of the half-rate integer units, two cycles of a scheduler each.
INTEGER = r"(IADD3|VIADD|LOP3|PLOP3|ISETP|FSETP|SEL|FSEL|LEA|SHF|PRMT|VIMNMX|IMNMX|FMNMX|IABS|BREV|LOP)\b"


def steady(lines: list[str], turns: int = 1) -> dict[str, float]:
    """Return what a turn of the inner loop executes: instructions, and cycles of the integer units.

    turns: of the inner loop in each turn of the loop around it, whose instructions it then bears a part of.
    """
    found = find_inner_loop(lines)
    inner = [opcode(line) for line in steady_path(inner_loop(lines))]
    paths = [inner]
    around = [loop for loop in all_loops(lines) if found and contains(loop, found)]
    if turns > 1:
        begin, end = min(around, key=lambda loop: loop[1] - loop[0])
        paths = [[opcode(line) for line in steady_path(lines[begin : end + 1])], *[inner] * (turns - 1)]
    integer = sum(bool(re.match(INTEGER, o)) for path in paths for o in path)
    return {"all": sum(map(len, paths)) / turns, "integer cycles": 2 * integer / turns}


def pivots(lines: list[str]) -> dict[str, int] | None:
    """Return the instructions of the loop of four pivots, and its branches and calls besides the loop's own.

    None for a kernel without pivots by row. BRA.DIV, before a shuffle, is taken by diverged warps only.
    """
    for begin, end in innermost_loops(lines):
        loop = lines[begin : end + 1]
        opcodes = [opcode(line) for line in loop if not line.endswith(":")]
        roots = sum(o.startswith("MUFU.RSQ") for o in opcodes)
        if roots == 4 and sum(o.startswith("SHFL") for o in opcodes) >= 4:
            branches = sum(bool(re.match(r"BRA$|BRX|CALL", o)) for o in opcodes) - 1
            return {"all": len(opcodes), "branches": branches}
    return None


def threads_of(name: str) -> int:
    angles = dict.fromkeys(("lengths_kernel", "angle_map_kernel", "angle_slope_kernel"), 128)
    blocks = {"mixed_kernel": 128, "warp_kernel": 128, "probe_kernel": 32, **angles}
    if name.startswith(("halves_kernel", "ranges_kernel")):
        return 256
    if name.startswith(("tensor_kernel", "half_kernel")):
        return 256 if re.search(r"\b128\b", name) else 128
    return blocks.get(name.split("<")[0], 256)


def occupancy(name: str, use: dict[str, int]) -> float:
    """Return the share of a multiprocessor's warps that can be resident."""
    threads = threads_of(name)
    dynamic = next((b for part, b in DYNAMIC.items() if name.startswith(part)), 0)
    warps = threads // 32
    registers = -(-use["registers"] * 32 // 256) * 256 * warps
    blocks = min(BLOCKS, THREADS // threads, REGISTERS // max(1, registers), SHARED // (use["shared"] + dynamic + 1024))
    return blocks * threads / THREADS


def all_sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def measure(architecture: str = "sm_90", sources: list[Path] | None = None) -> list[dict[str, Any]]:
    """Compile the sources (default: all) and return one row per kernel."""
    if shutil.which("nvcc") is None:
        raise SystemExit("no nvcc: nothing can be compiled")
    sources = all_sources() if sources is None else sources
    rows = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda s: compile_source(s, Path(folder), architecture), sources))
        for source, (cubin, output) in zip(sources, built, strict=True):
            use, code = resources(output), disassemble(cubin)
            names = readable(list(use))
            for mangled, own in sorted(use.items(), key=lambda item: names[item[0]]):
                name, lines = names[mangled], code[mangled]
                loop = inner_loop(lines)
                rows.append(
                    {
                        "source": source.name,
                        "kernel": name,
                        **own,
                        "occupancy": occupancy(name, own),
                        "whole": counts(lines),
                        "loop": counts(loop),
                        "steady": steady(lines, TURNS.get(name, 1)),
                        "pivots": pivots(lines),
                        "waits first": waits_first(lines),
                        "widths": {kind: widths(loop, kind) for kind in ("LDS", "LDG", "LDGSTS")},
                    }
                )
    return rows


def digest(source: Path, architecture: str) -> str:
    """Return a digest of all that the rows of a source follow from.

    These are its text, the texts of this project's headers that it includes and of this file, and the version of nvcc.
    """
    texts: dict[Path, bytes] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_bytes()
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', texts[path].decode(), re.MULTILINE):
            places = [folder / name for folder in (path.parent, *INCLUDED)]
            waiting += [place.resolve() for place in places if place.is_file()][:1]
    compiler = run("nvcc", "--version") + architecture
    parts = [compiler.encode(), Path(__file__).read_bytes(), *(texts[path] for path in sorted(texts))]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def changed_sources() -> list[Path]:
    """Return the sources that are not what the committed table was made of."""
    committed = json.loads(COMMITTED.read_text())
    return [s for s in all_sources() if committed["digests"].get(s.name) != digest(s, committed["architecture"])]


def table(rows: list[dict[str, Any]], architecture: str) -> str:
    lines = [
        f"# Kernels as compiled for {architecture}",
        "",
        "Generated by `make sass`. Occupancy: warps of a multiprocessor of an H100 that the launch can fill (one-block",
        "factorisations at n = 128, in one cluster at 512). Inner loop: the innermost loop with most multiply-adds",
        "(without a loop: all); its",
        "loads as number x bytes per lane. executed: instructions of one of its turns far from the edges of a matrix",
        "(and cycles of the integer units), with its part of the loop around it; the code has more, for edges.",
        "local: accesses of local memory, anywhere. From the host twin, over all accesses of",
        *(f"`{' '.join(map(str, c[1:]))}`," for c in twin.CALLS if c[0] == "float"),
        "in float and in double, and kernels of an angle in double:",
        "sectors of 32 bytes per request of a warp (and their ratio to the fewest that hold the requested "
        "bytes), and the worst",
        "bank conflict. Stores are after the loops. If a tile is split or mirrored, L2 merges their sectors.",
        "",
        "| kernel | registers | spills + stack | static shared | occupancy | inner loop: instructions | executed | HMMA"
        " | FFMA | DFMA | LDS | LDGSTS | LDG | SHFL | BAR | local | load sectors (x fewest) | store sectors"
        " | bank conflict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        c, once, wide, seen = r["loop"], r["steady"], r["widths"], r["accesses"]
        loads, stores = (
            f"{seen[f'{kind}_sectors']:.1f} ({seen[f'{kind}_waste']:.2f})" if seen[f"{kind}s"] else "-"
            for kind in ("load", "store")
        )
        lines.append(
            f"| `{r['kernel']}` | {r['registers']} | {r['spills'] + r['stack']} | {r['shared']} | {r['occupancy']:.0%}"
            f" | {c['all']} | {once['all']:.4g} ({once['integer cycles']:.4g})"
            f" | {c['HMMA']} | {c['FFMA']} | {c['DFMA']} | {wide['LDS']}"
            f" | {wide['LDGSTS']} | {wide['LDG']} | {c['SHFL']} | {c['BAR']} | {r['whole']['local']}"
            f" | {loads} | {stores} | {str(seen['ways']) + '-way' if seen['ways'] else '-'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--architecture", default="sm_90", help="architecture that nvcc compiles for (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder for sass.md and sass.json")
    arguments = parser.parse_args()
    rows, seen, calls = measure(arguments.architecture), twin.accesses(), floors.measure()
    for row in rows:
        row["accesses"] = seen.get(row["kernel"], twin.NO_ACCESSES)
    text = table(rows, arguments.architecture) + "\n" + floors.text(calls)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "sass.md").write_text(text)
        digests = {source.name: digest(source, arguments.architecture) for source in all_sources()}
        found = {"architecture": arguments.architecture, "digests": digests, "kernels": rows, "calls": calls}
        (arguments.out / "sass.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
