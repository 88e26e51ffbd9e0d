"""Loss and gradients of KRR, and the factorisation alone, on a GPU: called directly, and replayed from a CUDA graph.

The rows and aims are those of the floors in ``benchmarks/results/sass.md``. Each alternative's time has its error, and
below it the kernels of one call with their times. The first row is the cost of a call before any work: the same call on
a problem of two points.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from journal import Item, open_journal, run_items, step_parser
from switches import dependent_launch, one_cluster, several_passes
from torch import Tensor

import ssdd_ext
from ssdd_ext.bench import Problem, interleaved, machine, measure, measure_problem, seconds_text, summary, table
from ssdd_ext.bench.alternatives import ALTERNATIVES

# The aim in microseconds, in a graph on an H100.
KRR = (
    (Problem(2, 2, 4, 1), None),  # the cost of the launches and Python
    (Problem(10, 1024, 2048, 10), 20),
    (Problem(100, 1024, 4096, 512), 60),
    (Problem(1000, 1024, 8192, 512, bias=1.0), 800),
    (Problem(100, 256, 512, 10, b=64), 100),
)
CHOLESKY = ((64, 128, 15), (1, 512, 60), (64, 512, 250), (1, 2048, 500))
IN_CLUSTERS = ((1, 512),)  # measured in one cluster of blocks too, which is off by default
IN_ONE_PASS = ((2, 1), (10, 1), (100, 64))  # S and B of what is computed in one pass: measured without it too
SEVERAL_PASSES = "ssdd_ext, several passes"
DEPENDENT = "ssdd_ext, dependent launch"
TIMES = ("seconds", "graph_seconds")
COMPARED = ["ssdd_ext", "PyTorch, usual", "PyTorch, Cholesky", "PyTorch, planned"]

Row = dict[str, Any]


def profile(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the kernels of one call by total time: name, count, microseconds of all."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    for _ in range(2):
        call()
    torch.cuda.synchronize()
    with record(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name] += event.self_device_time_total
            counts[event.name] += 1
    return [{"kernel": n[:160], "count": counts[n], "us": round(us, 2)} for n, us in times.most_common()]


def profiles(calls: dict[str, Callable[[], Any]], device: str) -> dict[str, Any]:
    """Return the kernels of each call, or the reason why they are not known."""
    found: dict[str, Any] = {}
    for name, call in calls.items() if device == "cuda" else ():
        try:
            found[name] = profile(call)
        except Exception as failure:
            found[name] = f"{type(failure).__name__}: {failure}"
    return found


def profile_text(found: dict[str, Any]) -> str:
    lines = []
    for name, kernels in found.items():
        if isinstance(kernels, str):
            lines.append(f"  kernels of {name}: unknown ({kernels})")
            continue
        total, count = sum(k["us"] for k in kernels), sum(k["count"] for k in kernels)
        lines.append(f"  kernels of {name}: {count}, {total:.1f} us")
        lines += [f"    {k['us']:9.2f} us {k['count']:3} x {k['kernel'][:90]}" for k in kernels[:12]]
    return "\n".join(lines)


def krr_row(problem: Problem, aim: float | None, device: str, repeats: int, seconds: float) -> dict[str, Any]:
    problem = replace(problem, device=device)
    rows = measure_problem(problem, alternatives=COMPARED, repeats=repeats, seconds=seconds, memory=device == "cuda")
    rows[0]["aim_us"] = aim
    if (problem.s, problem.b) in IN_ONE_PASS:
        with several_passes():
            others = measure_problem(problem, alternatives=["ssdd_ext"], repeats=repeats, seconds=seconds, memory=False)
        rows += [{**row, "alternative": SEVERAL_PASSES} for row in others if row["alternative"] == "ssdd_ext"]
    inputs = problem.inputs()
    calls = {n: partial(measure.step, ALTERNATIVES[n], problem, inputs) for n in ("ssdd_ext", "PyTorch, planned")}
    found = profiles(calls, device)
    text = table(rows) + "\n" + profile_text(found)
    wrong = [row["alternative"] for row in rows if row["seconds"] is None and "ssdd_ext" in row["alternative"]]
    if wrong:
        raise AssertionError(f"ssdd_ext was wrong beyond rounding, or failed: {rows}")
    return {"rows": rows, "kernels": found, "text": text}


def ours(k: Tensor) -> Tensor:
    return ssdd_ext.cholesky(k, on_failure="nan")


def ours_in_clusters(k: Tensor) -> Tensor:
    with one_cluster():
        return ours(k)


def torch_cholesky(k: Tensor) -> Tensor:
    # Without reading the status, which a graph cannot do.
    factor: Tensor = torch.linalg.cholesky_ex(k).L
    return factor


def add_times(
    rows: dict[str, Row], calls: dict[str, Callable[[], Any]], device: str, repeats: int, seconds: float
) -> None:
    """Set ``seconds`` of the rows and, on a GPU, ``graph_seconds``, or the reason why there is no graph in ``note``."""
    for name, samples in interleaved(calls, device, repeats, seconds).items():
        rows[name]["seconds"] = summary(samples)
    if device != "cuda":
        return
    times, refused = measure.in_graphs(calls, repeats, seconds)
    for name, row in rows.items():
        row["graph_seconds"], row["note"] = times.get(name), refused.get(name, "")


def new_row(name: str, work: str, size: dict[str, Any], error: dict[str, float], device: str) -> Row:
    row = {"alternative": name, "does": work, "problem": size, "error": error, "seconds": None, "graph_seconds": None}
    return row | {"note": "", **machine.describe(device)}


FACTORISATIONS: dict[str, Callable[[Tensor], Tensor]] = {"ssdd_ext": ours, "PyTorch": torch_cholesky}


def matrices(batch: int, n: int, device: str) -> Tensor:
    """Return well-conditioned symmetric positive definite float32 matrices [batch, n, n]."""
    x = torch.randn(batch, n, n + 8, generator=torch.Generator().manual_seed(9)).to(device)
    return x @ x.mT / n + torch.eye(n, device=device)


def cholesky_row(
    batch: int, n: int, aim: float, device: str, repeats: int, seconds: float, clusters: bool = False
) -> dict[str, Any]:
    """Measure the factor of ``batch`` well-conditioned matrices [n, n] in float32; error: |L L^T - K| / |K| in
    float64."""
    factorisations = FACTORISATIONS | ({"ssdd_ext, one cluster": ours_in_clusters} if clusters else {})
    k = matrices(batch, n, device)
    calls = {name: partial(factorise, k) for name, factorise in factorisations.items()}
    rows: dict[str, Row] = {}
    for name, call in calls.items():
        factor = call().double().tril()
        error = float((factor @ factor.mT - k.double()).norm() / k.double().norm())
        rows[name] = new_row(name, "factor", {"batch": batch, "n": n}, {"factor": error}, device)
    if not all(row["error"]["factor"] < 1e-4 for row in rows.values()):  # a wrong result is not timed
        raise AssertionError(f"a factor is wrong beyond rounding: {rows}")
    rows["ssdd_ext"]["aim_us"] = aim
    add_times(rows, calls, device, repeats, seconds)
    found = profiles({name: call for name, call in calls.items() if name != "PyTorch"}, device)
    text = "\n".join([*map(line, rows.values()), profile_text(found)])
    return {"rows": list(rows.values()), "kernels": found, "text": text}


def dependent_row(
    call: Callable[[], Sequence[Tensor]], work: str, size: dict[str, Any], device: str, repeats: int, seconds: float
) -> dict[str, Any]:
    """Measure one call with dependent launches beside the same call without. Its results must have the same bits."""

    def dependent() -> Sequence[Tensor]:
        with dependent_launch():
            return call()

    calls = {"ssdd_ext": call, DEPENDENT: dependent}
    expected = [t.clone() for t in call()]
    if not all(torch.equal(*pair) for pair in zip(dependent(), expected, strict=True)):
        raise AssertionError("dependent launches give other bits")
    rows = {name: new_row(name, work, size, {"from the default": 0.0}, device) for name in calls}
    add_times(rows, calls, device, repeats, seconds)
    times = {n: [seconds_text(t["median"]) if (t := r[k]) else "-" for k in TIMES] for n, r in rows.items()}
    text = ", ".join(f"{n} {eager}, in a graph {graph}" for n, (eager, graph) in times.items())
    return {"rows": list(rows.values()), "text": " ".join([text, *(r["note"] for r in rows.values() if r["note"])])}


def dependent_krr(problem: Problem, device: str, repeats: int, seconds: float) -> dict[str, Any]:
    problem = replace(problem, device=device)
    call = partial(measure.step, ALTERNATIVES["ssdd_ext"], problem, problem.inputs())
    return dependent_row(call, measure.does("ssdd_ext", problem), asdict(problem), device, repeats, seconds)


def dependent_cholesky(batch: int, n: int, device: str, repeats: int, seconds: float) -> dict[str, Any]:
    k = matrices(batch, n, device)
    return dependent_row(lambda: (ours(k),), "factor", {"batch": batch, "n": n}, device, repeats, seconds)


def line(row: Row) -> str:
    times = [seconds_text(t["median"]) if (t := row[key]) else "-" for key in TIMES]
    size = f"{row['problem']['batch']}x{row['problem']['n']}"
    text = f"Cholesky {size:8} {row['alternative']:21} {times[0]:>9}  graph {times[1]:>9}  {row['error']['factor']:.1e}"
    return f"{text}  {row['note']}" if row["note"] else text


def items(device: str, quick: bool, repeats: int, seconds: float) -> Iterator[Item]:
    problems = {}
    for problem, aim in KRR:
        name = f"krr S={problem.s} Q={problem.q} D={problem.d} C={problem.c} B={problem.b}"
        if quick:
            problem = replace(problem, q=min(problem.q, 32), s=min(problem.s, 20), d=min(problem.d, 40), c=2)
        problems[name] = problem
        yield name, partial(krr_row, problem, aim, device, repeats, seconds)
    orders = {}
    for batch, n, aim in CHOLESKY:
        name, order = f"cholesky {batch}x{n}", min(n, 16) if quick else n
        orders[name] = batch, order
        clusters = (batch, n) in IN_CLUSTERS
        yield name, partial(cholesky_row, batch, order, aim, device, repeats, seconds, clusters)
    # Last, since it has run on no GPU: what goes wrong here leaves all rows above.
    for name, problem in problems.items():
        yield f"dependent launch, {name}", partial(dependent_krr, problem, device, repeats, seconds)
    for name, (batch, order) in orders.items():
        yield f"dependent launch, {name}", partial(dependent_cholesky, batch, order, device, repeats, seconds)


def main(argv: Sequence[str] | None = None) -> int:
    p = step_parser(__doc__, "rows")
    p.add_argument("--repeats", type=int, default=20, help="most samples of each alternative")
    p.add_argument("--seconds", type=float, default=3.0, help="no new sample after this, beyond five")
    a = p.parse_args(argv)
    journal = open_journal(a.out, "rows")
    repeats, seconds = (2, 0.0) if a.quick else (a.repeats, a.seconds)
    return 0 if run_items(items(a.device, a.quick, repeats, seconds), journal) else 1


if __name__ == "__main__":
    sys.exit(main())
