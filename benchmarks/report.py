"""Write the tables of docs/benchmarks.md from the committed results: ``python benchmarks/report.py``.

``--check`` changes nothing and fails if the page differs from the results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench:krr -->", "<!-- /bench:krr -->"
THIS, USUAL, BEST_TORCH = "ssdd_ext", "PyTorch, usual", "PyTorch, planned"
RATIOS = ("PyTorch, Cholesky", BEST_TORCH, "GPyTorch")

Row = dict[str, Any]


def load(results: Path, what: str) -> list[list[Row]]:
    """Return the result files of one kind, each a list of rows, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(results.glob(f"*_{what}_*.json"))]


def problems(rows: list[Row]) -> list[dict[str, Row]]:
    """Group rows by problem, in their order: alternative -> row."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["problem"], sort_keys=True), {})[row["alternative"]] = row
    return list(groups.values())


def milliseconds(seconds: float) -> str:
    """Return three significant digits: 0.412 ms, 41.2 ms, 4120 ms."""
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def sizes(problem: Row) -> str:
    text = f"{problem['s']}, {problem['q']}, {problem['d']}, {problem['c']}"
    text += f", {problem['b']} problems" if problem["b"] > 1 else ""
    text += f", bias {problem['bias']:g}" if problem["bias"] else ""
    return text + (", RBF" if problem["kernel"] == "rbf" else "")


def _ratio(group: dict[str, Row], name: str) -> str:
    ratio = group[name]["ratio"] if name in group else None
    return f"{ratio:.2f}x" if ratio is not None else "-"


def _time(row: Row | None) -> str:
    return milliseconds(row["seconds"]["median"]) if row and row["seconds"] else "-"


def _error(row: Row) -> str:
    return f"{max(row['error'].values()):.1e}" if row["error"] else "-"


def _peak(row: Row) -> str:
    return f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] is not None else "-"


def krr_table(rows: list[Row]) -> str:
    """Return one machine's table: one line per problem, below a sentence on the machine and the method."""
    groups = problems(rows)
    shown = [n for n in RATIOS if any(n in g and g[n]["ratio"] is not None for g in groups)]
    sklearn = any("scikit-learn" in g and g["scikit-learn"]["seconds"] for g in groups)
    heads = ["S, Q, D, C", USUAL, f"**{THIS}**", "ratio", *shown]
    heads += ["scikit-learn, forward only"] if sklearn else []
    heads += [f"error {THIS} / usual", f"peak MiB {THIS} / usual"]
    lines = [where(rows[0]), "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for group in groups:
        this, usual = group[THIS], group[USUAL]
        cells = [sizes(this["problem"]), _time(usual), _time(this), f"**{_ratio(group, THIS)}**"]
        cells += [_ratio(group, n) for n in shown]
        cells += [_time(group.get("scikit-learn"))] if sklearn else []
        cells += [f"{_error(this)} / {_error(usual)}", f"{_peak(this)} / {_peak(usual)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def where(row: Row) -> str:
    """Return the machine, the versions and the computation, as a sentence of the page."""
    sets = "; ".join(f"{n}: {v}" for n, v in row["instruction_sets"].items())
    versions = ", ".join(f"{n} {v}" for n, v in row["versions"].items())
    p = row["problem"]
    does = f"forward + backward to {' and '.join(p['backward'])}" if p["backward"] else "forward"
    detached = ", detached" if p["ridge_kind"] == "trace" else ""
    return (
        f"{row.get('gpu', row['cpu'])}, {row['threads']} threads ({sets}); {versions}. {p['dtype']}, {does}, "
        f"ridge {p['ridge']:g} ({p['ridge_kind']}{detached}); medians of alternating runs in one process; "
        "ratios are to the usual formulation; errors are the largest relative error of loss and gradients against "
        "float64."
    )


def alternate_line(rows: list[Row]) -> str:
    def worst(name: str, which: str) -> str:
        return f"{100 * max(r[which] for r in rows if r['alternative'] == name):+.0f}%"

    output = (f"{n} {worst(n, 'overhead')} ({worst(n, 'overhead_warm')})" for n in (THIS, USUAL, BEST_TORCH))
    return (
        "Alternating a KRR call with a torch convolution, compared with running each alone from cold caches "
        f"(in brackets: from warm caches): {', '.join(output)}."
    )


def plan_line(rows: list[Row]) -> str:
    worst, right = max(r["loss"] for r in rows), sum(r["chosen"] == r["best"] for r in rows)
    return (
        f"The cost model chose the fastest plan for {right} of {len(rows)} shapes; its worst choice is "
        f"{100 * worst:.0f}% slower than the fastest."
    )


def distill_table(rows: list[Row]) -> str:
    """Return the table of outer steps and the published loop: one line per preset, below a sentence on the method."""
    step = {row["shape"]["preset"]: row for row in rows if row["part"] == "step"}
    first = rows[0]
    clock = "wall time" if first["clock"] == "wall" else "processor time"
    kept = "with large blocks kept by the allocator" if first["allocator"] else "with the C library's default allocator"
    lines = [
        f"An outer step of the distillation, {first['cpu']}, {first['threads']} thread, {clock}, {kept}; medians of "
        "runs that alternate with the published loop in plain PyTorch (teacher at every step, LU). The ceiling is the "
        "ratio of multiplications, with and without the teacher's.",
        "",
        "| preset | published | **ssdd** | ratio | ceiling | ratio / ceiling | largest part of a step |",
        "|" + "---|" * 7,
    ]
    for name, row in step.items():
        part = max(
            (r for r in rows if r["shape"]["preset"] == name and r["part"] != "step"),
            key=lambda r: float(r["share_of_step"]),
        )
        times = {n: milliseconds(t["median"]) for n, t in row["seconds"].items()}
        lines.append(
            f"| {name} | {times['published']} | {times['ssdd']} | **{row['ratio']:.2f}x** | {row['ceiling']:.2f}x "
            f"| {row['of_ceiling']:.0%} | {part['part']}, {part['share_of_step']:.0%} |"
        )
    return "\n".join(lines)


def roads_table(rows: list[Row]) -> str:
    """Return the table of every way into the backend: one line per call, below a sentence on the machine and method."""
    first = rows[0]
    threads = f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    sets = "; ".join(f"{n}: {v}" for n, v in first["instruction_sets"].items())
    lines = [
        f"Every way into the backend, {first['cpu']}, {threads} ({sets}), {first['clock']} time on a "
        "shared machine. Each call takes turns with the fastest order of the products in PyTorch, or what the last "
        "column names. Ratios are theirs over ours, of minima; in brackets of medians, which other load disturbs more.",
        "",
        "| call | sizes | **ssdd_ext** | other | ratio | at least | aim | error | other |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        goal = ["", ""] if row["at_least"] is None else [f"{row[n]:.2g}" for n in ("at_least", "aim")]
        times = [milliseconds(row[n]["least"]) for n in ("ours", "theirs")]
        ratio = f"**{row['ratio_of_minima']:.2f}** ({row['ratio']:.2f})"
        off = "" if row["error"] is None else f"{row['error']:.1e}"
        cells = [row["what"], ", ".join(map(str, row["sizes"])), *times, ratio, *goal, off, row["best"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render(results: Path) -> str:
    """Return everything between the markers."""
    parts = [krr_table(rows) for rows in load(results, "krr")]
    parts += [alternate_line(rows) for rows in load(results, "alternate")]
    parts += [plan_line(rows) for rows in load(results, "plan")]
    parts += [roads_table(rows) for rows in load(results, "roads") + load(results, "roads2")]
    parts += [distill_table(rows) for rows in load(results, "distill") if "clock" in rows[0]]
    return "\n\n".join(parts) if parts else "No results yet: `make bench`."


FRONT = ((1000, 1024, 8192, 512), (1000, 1024, 2048, 100), (100, 1024, 2048, 10), (10, 256, 512, 64))
FRONT_GPU = ("krr S=100 Q=1024 D=4096 C=512 B=1", "krr S=1000 Q=1024 D=8192 C=512 B=1")


def front_table(results: Path) -> str:
    """Return the README's table: a few problems on the newest CPU measured and on a GPU."""
    head = "| S, Q, D, C | on | ssdd_ext | PyTorch written well | faster by | than the six lines by |"
    lines = [head, "|" + "---|" * 6]

    def add(name: str, device: str, ours: float, best: float, usual: float) -> None:
        times = [f"{v * 1e3:.3g} ms" if v >= 1e-3 else f"{v * 1e6:.3g} us" for v in (ours, best)]
        lines.append(f"| {name} | {device} | {times[0]} | {times[1]} | {best / ours:.1f}x | {usual / ours:.1f}x |")

    groups = [g for g in problems(load(results, "krr")[-1]) if next(iter(g.values()))["problem"]["b"] == 1]
    for expected in FRONT:
        group = next(g for g in groups if tuple(g[THIS]["problem"][n] for n in "sqdc") == expected)
        times = {n: row["seconds"]["median"] for n, row in group.items() if row["seconds"]}
        best = min(v for n, v in times.items() if n.startswith("PyTorch"))
        add(", ".join(map(str, expected)), "CPU", times[THIS], best, times[USUAL])
    for report in sorted(results.glob("gpu-h100/rows.jsonl")):
        ended = {line["end"]: line for line in map(json.loads, report.read_text().splitlines()) if "end" in line}
        for name in FRONT_GPU:
            rows = {row["alternative"]: row["graph_seconds"]["median"] for row in ended[name]["rows"]}
            size = ", ".join(str(ended[name]["rows"][0]["problem"][n]) for n in "sqdc")
            best = min(v for n, v in rows.items() if n.startswith("PyTorch"))
            add(size, "H100", rows[THIS], best, rows[USUAL])
    return "\n".join(lines)


def between(page: str) -> str | None:
    """Return the text between the markers, or None if the page has no markers."""
    if BEGIN not in page or END not in page:
        return None
    return page.split(BEGIN, 1)[1].split(END, 1)[0].strip("\n")


def replace_between(page: str, body: str) -> str:
    """Return the page with ``body`` between its markers."""
    if between(page) is None:
        raise ValueError(f"the page lacks the lines {BEGIN} and {END}")
    before, rest = page.split(BEGIN, 1)
    # Markdown starts a paragraph after a comment only if there is a blank line.
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.split(END, 1)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--check", action="store_true", help="fail if the page is not what the results say")
    p.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    p.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    p.add_argument("--front", action="store_true", help="the short table of --page (the README), not all tables")
    a = p.parse_args(argv)
    old = a.page.read_text()
    try:
        new = replace_between(old, front_table(a.results) if a.front else render(a.results))
    except ValueError as error:
        p.error(str(error))
    if a.check:
        return int(old != new)
    a.page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
