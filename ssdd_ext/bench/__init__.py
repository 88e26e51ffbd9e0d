"""``python -m ssdd_ext.bench``: this backend compared with the alternatives, for your sizes on your machine.

It prints the plan. Then it prints, for each installed alternative, the time (median and quartiles), the ratio to the
usual PyTorch formulation, the error against float64 and the peak memory. An alternative is timed only after its error
was checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import machine, measure
from .alternatives import ALTERNATIVES, USUAL, plan_of, why_not
from .measure import interleaved, summary
from .problem import DTYPES, INPUTS, Problem

__all__ = ["ALTERNATIVES", "Problem", "interleaved", "machine", "main", "measure_problem", "summary", "table"]

Row = dict[str, Any]


def measure_problem(
    problem: Problem,
    *,
    alternatives: Sequence[str] = tuple(ALTERNATIVES),
    repeats: int = 20,
    seconds: float = 20.0,
    memory: bool = True,
) -> list[Row]:
    """Measure one problem: one row per alternative, as JSON values.

    Args:
        problem: the problem to measure.
        alternatives: names of ``ALTERNATIVES``; the usual formulation is always measured too. Default: all.
        repeats: as in :func:`interleaved`, for all alternatives together. Default 20.
        seconds: as in :func:`interleaved`. Default 20.
        memory: also measure the peak memory of each, in a process of its own. Default True.

    Returns:
        Rows with ``seconds`` {median, lower, upper, repeats} or None, ``error`` relative to float64 {loss, x_s, ...} or
        None, ``ratio`` = the usual formulation's median over this one's, ``peak_bytes`` above the inputs, ``note`` (why
        a number is missing), and the problem, the machine and the versions. On CUDA also ``graph_seconds`` and
        ``graph_ratio``, of the same calls in CUDA graphs.
    """
    names = [n for n in ALTERNATIVES if n in alternatives or n == USUAL]
    inputs = problem.inputs()
    exact = measure.truth(problem, inputs)
    of_usual = measure.errors(ALTERNATIVES[USUAL], problem, inputs, exact)
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name in names:
        note, error, plan = why_not(name, problem), None, None
        if note is None:
            try:
                error = measure.errors(ALTERNATIVES[name], problem, inputs, exact)
                plan = plan_of(name, problem, inputs)
            except Exception as failure:  # another library can raise any exception; the other alternatives still run
                note = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        if error is not None and not measure.acceptable(error, of_usual, problem):
            note = "not timed: wrong beyond rounding"
        elif error is not None:
            calls[name] = partial(measure.step, ALTERNATIVES[name], problem, inputs)
        rows[name] = {
            "alternative": name,
            "does": measure.does(name, problem),
            "problem": asdict(problem),
            "plan": plan,
            "seconds": None,
            "ratio": None,
            "error": error,
            "peak_bytes": None,
            "note": note,
            **machine.describe(problem.device),
        }
    del exact
    if USUAL not in calls:
        raise ValueError(f"the usual formulation itself fails on this problem, nothing to compare with: {of_usual}")
    times = {n: summary(t) for n, t in interleaved(calls, problem.device, repeats, seconds).items()}
    for name, time in times.items():
        row = rows[name]
        row["seconds"] = time
        if row["does"] == rows[USUAL]["does"]:
            row["ratio"] = times[USUAL]["median"] / time["median"]
        if memory:
            # torch reports a GPU's peak. The peak of a process never goes down, so it takes a new process.
            apart = not problem.device.startswith("cuda")
            count = torch.get_num_threads()
            row["peak_bytes"] = measure.peak_apart(name, problem, count) if apart else measure.peak_here(name, problem)
    if problem.device.startswith("cuda"):
        _in_graphs(rows, calls, repeats, seconds)
    return list(rows.values())


def _in_graphs(rows: dict[str, Row], calls: dict[str, Callable[[], Any]], repeats: int, seconds: float) -> None:
    """Add ``graph_seconds`` and ``graph_ratio`` to every row: the same calls, each replayed from a CUDA graph."""
    times, refused = measure.in_graphs(calls, repeats, seconds)
    for name, row in rows.items():
        row["graph_seconds"] = row["graph_ratio"] = None
        row["note"] = refused.get(name, row["note"])
    for name, time in times.items():
        rows[name]["graph_seconds"] = time
        if USUAL in times and rows[name]["does"] == rows[USUAL]["does"]:
            rows[name]["graph_ratio"] = times[USUAL]["median"] / time["median"]


def table(rows: list[Row]) -> str:
    """Return the rows of one problem as text, below the plan and the machine."""
    first = rows[0]
    settings = {**first["problem"], "backward": tuple(first["problem"]["backward"])}
    where = first.get("gpu", first["cpu"])
    versions = ", ".join(f"{n} {v}" for n, v in first["versions"].items())
    sets = ", ".join(f"{n} {v}" for n, v in first["instruction_sets"].items())
    lines = [Problem(**settings).describe(), f"{where}, {first['threads']} threads ({sets}); {versions}"]
    lines += [f"plan of {r['alternative']}: {r['plan']}" for r in rows if r["plan"]]
    names = ("loss", *first["problem"]["backward"])
    heads = "".join(f"{'error: ' + n if n == 'loss' else n:>12}" for n in names)
    lines.append(f"{'':18}{'median':>11}  {'quartiles':<21}{'ratio':>8}{heads}{'peak':>12}")
    return "\n".join([*lines, *(_line(row, names) for row in rows)])


def _line(row: Row, names: tuple[str, ...]) -> str:
    time, error, peak, ratio = row["seconds"], row["error"], row["peak_bytes"], row["ratio"]
    if error is None:
        return f"{row['alternative']:18}{row['note']}"
    line = f"{row['alternative']:18}"
    if time is None:
        line += " " * 42
    else:
        quartiles = f"{seconds_text(time['lower'])} .. {seconds_text(time['upper'])}"
        line += f"{seconds_text(time['median']):>11}  {quartiles:<21}"
        line += f"{row['does']:>8}" if ratio is None else f"{ratio:7.2f}x"
    line += "".join(f"{error[n]:12.1e}" if n in error else f"{'-':>12}" for n in names)
    line += "" if peak is None else f"{peak / 2**20:8.1f} MiB"
    if row.get("graph_seconds"):
        ratio = f" ({row['graph_ratio']:.2f}x)" if row["graph_ratio"] is not None else ""
        line += f"  in a graph {seconds_text(row['graph_seconds']['median'])}{ratio}"
    return line + (f"  {row['note']}" if row["note"] else "")


def seconds_text(value: float) -> str:
    """Return seconds with three digits and a unit, such as "12.3 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1 or unit == "us":
            return f"{value * scale:.3g} {unit}"
    raise AssertionError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m ssdd_ext.bench",
        description=__doc__.split("\n\n")[0] if __doc__ else None,
        epilog="Ratios are to the usual PyTorch formulation: X_q @ X_s.T, X_s @ X_s.T, torch.linalg.solve, mse_loss, "
        "autograd, with a ones column for the bias. JSON: one row per alternative.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--s", type=int, default=1000, help="support points")
    p.add_argument("--q", type=int, default=1024, help="query points")
    p.add_argument("--d", type=int, default=2048, help="features")
    p.add_argument("--c", type=int, default=10, help="targets")
    p.add_argument("--b", type=int, default=1, help="problems in a batch")
    p.add_argument("--kernel", choices=("linear", "rbf"), default="linear")
    p.add_argument("--bias", type=float, default=0.0, help="bias of the linear kernel")
    p.add_argument("--lengthscale", type=float, help="lengthscale of the RBF (default: sqrt(D))")
    p.add_argument("--ridge-kind", choices=("absolute", "trace", "mean_trace"), default="trace")
    p.add_argument("--ridge", type=float, default=1e-6)
    p.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="dtype of the features")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument(
        "--backward", default="x_s,y_s", help="inputs that get a gradient: some of x_s,y_s,x_q,y_q, or 'none'"
    )
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    p.add_argument(
        "--only", help=f"alternatives, comma-separated: {', '.join(ALTERNATIVES)}".replace("PyTorch, ", "PyTorch ")
    )
    p.add_argument("--repeats", type=int, default=20, help="largest number of samples per alternative")
    p.add_argument(
        "--seconds", type=float, default=20.0, help="time after which no new round begins; at least five are run"
    )
    p.add_argument("--no-memory", action="store_true", help="skip peak memory (one process per alternative)")
    p.add_argument("--json", type=Path, metavar="FILE", help="file for the rows")
    return p


def _problem(p: argparse.ArgumentParser, a: argparse.Namespace) -> Problem:
    backward = () if a.backward in ("", "none") else tuple(n.strip() for n in a.backward.split(","))
    if unknown := [n for n in backward if n not in INPUTS]:
        p.error(f"--backward: {unknown[0]!r} is none of {', '.join(INPUTS)}")
    if short := [n for n in ("s", "q", "d", "c", "b", "repeats") if getattr(a, n) < 1]:
        p.error(f"--{short[0]}: expected at least 1, got {getattr(a, short[0])}")
    if a.bias and a.kernel != "linear":
        p.error("--bias belongs to --kernel linear")
    if a.lengthscale is not None and a.kernel != "rbf":
        p.error("--lengthscale belongs to --kernel rbf")
    if a.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: torch sees no CUDA device here")
    names = ("s", "q", "d", "c", "b", "kernel", "bias", "lengthscale", "ridge_kind", "ridge", "dtype", "device")
    return Problem(**{n: getattr(a, n) for n in names}, backward=tuple(n for n in INPUTS if n in backward))


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Run the command; return the rows that it printed and wrote."""
    p = parser()
    a = p.parse_args(argv)
    problem = _problem(p, a)
    try:
        _ = problem.kernel_object, problem.ridge_object
    except ValueError as error:
        p.error(str(error))
    if a.threads is not None:
        torch.set_num_threads(a.threads)
    plain = {n.replace(",", ""): n for n in ALTERNATIVES}
    only = [n.strip().replace(",", "") for n in a.only.split(",")] if a.only else list(plain)
    if unknown := [n for n in only if n not in plain]:
        p.error(f"--only: {unknown[0]!r} is none of {', '.join(plain)}")
    print("measuring ...", file=sys.stderr)
    rows = measure_problem(
        problem,
        alternatives=[plain[n] for n in only],
        repeats=max(a.repeats, 2),
        seconds=a.seconds,
        memory=not a.no_memory,
    )
    print(table(rows))
    if a.json is not None:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows
