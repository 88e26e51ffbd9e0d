"""Write the page of a committed GPU report: ``python benchmarks/gpu/page.py DIR`` makes DIR/README.md from its JSON
files.

``--check`` changes nothing and fails if the page differs from the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # -P keeps the script's folder off the path

from journal import Journal  # noqa: E402

ALTERNATIVES = ("ssdd_ext", "PyTorch, planned", "PyTorch, Cholesky", "PyTorch, usual")


def microseconds(value: float | None) -> str:
    """Return three significant digits with a unit."""
    if value is None:
        return "-"
    return f"{value * 1e6:.3g} us" if value < 1e-3 else f"{value * 1e3:.3g} ms"


def median(row: dict[str, Any], key: str) -> float | None:
    return row[key]["median"] if row.get(key) else None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def krr_table(items: list[dict[str, Any]]) -> list[str]:
    rows = []
    for item in items:
        if not item["end"].startswith("krr"):
            continue
        name = item["end"].removeprefix("krr ")
        if item["outcome"] != "passed":
            rows.append([name, *[item["outcome"]] * 7])
            continue
        by = {row["alternative"]: row for row in item["rows"]}
        ours = by["ssdd_ext"]
        times = {n: median(by[n], "graph_seconds") for n in ALTERNATIVES if n in by}
        here, there = times["ssdd_ext"], min((v for n, v in times.items() if n != "ssdd_ext" and v), default=None)
        ratio = f"{there / here:.2f}x" if here and there else "-"
        error = f"{max(ours['error'].values()):.1e} / {max(by['PyTorch, usual']['error'].values()):.1e}"
        aim = f"{ours['aim_us']} us" if ours.get("aim_us") else "-"
        rows.append([name, *(microseconds(times.get(n)) for n in ALTERNATIVES), ratio, error, aim])
    head = [
        "problem",
        "ssdd_ext",
        "PyTorch written well",
        "PyTorch, Cholesky",
        "PyTorch, usual",
        "best PyTorch over ssdd_ext",
        "error ssdd_ext / usual",
        "aim",
    ]
    return table(head, rows)


def cholesky_table(items: list[dict[str, Any]]) -> list[str]:
    rows = []
    for item in items:
        if not item["end"].startswith("cholesky") or item["outcome"] != "passed":
            continue
        by = {row["alternative"]: row for row in item["rows"]}
        ours, torch = (median(by[n], "graph_seconds") for n in ("ssdd_ext", "PyTorch"))
        ratio = f"{torch / ours:.2f}x" if ours and torch else "-"
        rows.append(
            [
                item["end"].removeprefix("cholesky "),
                microseconds(ours),
                microseconds(torch),
                ratio,
                f"{by['ssdd_ext']['error']['factor']:.1e}",
                f"{by['ssdd_ext']['aim_us']} us",
            ]
        )
    return table(["batch x order", "ssdd_ext", "torch.linalg.cholesky_ex", "ratio", "error", "aim"], rows)


def distill_table(items: list[dict[str, Any]]) -> list[str]:
    rows = []
    for item in items:
        if item["outcome"] == "passed":
            rows.append(
                [
                    item["end"],
                    f"{item['seconds'] * 1e3:.2f} ms",
                    f"{item['ratio']:.2f}x",
                    f"{item['gradient_error']:.1e}",
                ]
            )
        else:
            rows.append([item["end"], item["outcome"], "-", "-"])
    return table(["lever, on top of those above", "step", "ratio", "error of the outer gradient"], rows)


def constants_table(items: list[dict[str, Any]]) -> list[str]:
    return table(["constant", "measured"], [[i["end"], i.get("text", i["outcome"])] for i in items])


def page(folder: Path) -> str:
    report = json.loads((folder / "report.json").read_text())
    items = {name: Journal(folder / f"{name}.jsonl").ended() for name in ("smoke", "rows", "constants", "distill")}
    steps = []
    for name, step in report["steps"].items():
        counts = ", ".join(f"{n} {outcome}" for outcome, n in step.get("items", {}).items())
        steps.append([name, "passed" if step["rc"] == 0 else "failed", f"{step['seconds']:.0f} s", counts])
    lines = [
        f"# {report['gpu']}",
        "",
        f"Compute capability {report['compute_capability']}, {report['multiprocessors']} multiprocessors, driver "
        f"{report['driver']}, torch {report['torch']} (CUDA {report['torch_cuda']}), nvcc {report['nvcc']}, Python "
        f"{report['python']}, {report['cpus']} CPU cores. Written by `benchmarks/gpu/page.py` from the files "
        "beside it, which `make gpu` wrote.",
        "",
        "## Steps",
        "",
        *table(["step", "result", "time", "items"], steps),
        "",
        "## Loss and gradients of KRR",
        "",
        "float32, forward and backward to x_s and y_s, ridge 1e-6 of the trace; medians of replayed CUDA graphs, in "
        'turn in one process, with cold caches. "PyTorch written well" picks the order of the products by cost, as '
        "ssdd_ext does; in graphs torch's solves come from cuSOLVER. Errors are the largest relative error of loss and "
        "gradients against float64.",
        "",
        *krr_table(items["rows"]),
        "",
        "## Cholesky factorisation",
        "",
        *cholesky_table(items["rows"]),
        "",
    ]
    if items["distill"]:
        lines += [
            "## An outer step of the distillation",
            "",
            "Shapes of the `cifar100` preset: 1,000 distilled images, batches of 1,024, ConvNet 128-256-512, a "
            "ResNet-18 as the teacher.",
            "",
            *distill_table(items["distill"]),
            "",
        ]
    lines += ["## Constants of the cost model", "", *constants_table(items["constants"]), ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, nargs="+", help="folders with a report.json")
    p.add_argument("--check", action="store_true", help="change nothing; fail if a page is not up to date")
    a = p.parse_args(argv)
    stale = []
    for folder in a.folder:
        target, text = folder / "README.md", page(folder)
        if a.check:
            stale += [] if target.exists() and target.read_text() == text else [str(target)]
        else:
            target.write_text(text)
    if stale:
        print(f"not what the files beside them say: {', '.join(stale)}; run benchmarks/gpu/page.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
