"""Test whether the cost model picks the fastest plan: every legal plan on a grid of shapes is measured.

It prints, per shape, the chosen plan, the fastest plan, and the loss = time of the chosen / time of the fastest - 1,
which should be at most 15% everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from timing import arguments, write

from ssdd_ext import plan
from ssdd_ext.bench import ALTERNATIVES, Problem, interleaved, machine, measure, seconds_text, summary

LIMIT = 0.15
AS_CALLED = "as called"
# Shapes whose cheapest plan has more multiply-adds than this add no information to smaller ones.
MOST_MULTIPLY_ADDS = 10e9


def grid() -> list[Problem]:
    """Return shapes with S from 10 to 2000; D below, near and above S; C from 10 to S; few and many queries."""
    shapes = set()
    for s in (10, 50, 200, 500, 1000, 2000):
        for d, c in product((max(8, s // 4), s - s // 10, s, 4 * s, 8192), (10, s // 4, s)):
            shapes.add((s, 256 if s < 100 else 1024, d, max(1, c)))
        shapes.add((s, 4 * s, s + s // 10, s))
    problems = [Problem(*shape) for shape in sorted(shapes)]
    return [p for p in problems if sum(min(c.values()) for c in planned(p).costs.values()) <= MOST_MULTIPLY_ADDS]


def planned(problem: Problem) -> plan.Plan:
    """Return what the cost model picks, and the orders it picked from."""
    linear = problem.kernel == "linear"
    itemsize = 8 if problem.dtype == "float64" else 4
    expected = ("x_s" in problem.backward, "x_q" in problem.backward)
    sizes = (problem.s, problem.q, problem.d, problem.c)
    return plan.choose(plan.Problem(*sizes, linear, linear and problem.bias != 0, itemsize, *expected))


def forced(pair: tuple[str, str], problem: Problem, inputs: dict[str, Any]) -> Callable[[], Any]:
    def run() -> None:
        with plan.force(forward=pair[0], backward=pair[1]):
            measure.step(ALTERNATIVES["ssdd_ext"], problem, inputs)

    return run


def candidates(problem: Problem) -> dict[str, tuple[tuple[str, str], Problem]]:
    """Return every legal plan by name: its (forward, backward), and the problem to force it on.

    If the primal is the rule (D < S) and D is near S, the dual's plans are added, on the problem with D = S. Their cost
    there is an upper bound of their cost here.
    """
    found = {}
    for which, at in (("", problem), ("dual at D=S: ", replace(problem, d=problem.s))):
        if which and not 0.75 * problem.s <= problem.d < problem.s:
            continue
        costs = planned(at).costs
        for pair in product(costs["forward"], costs["backward"]):
            found[which + " + ".join(pair)] = (pair, at)
    return found


def measure_shape(problem: Problem, repeats: int, seconds: float) -> dict[str, Any]:
    """Return one row: seconds of every plan, the chosen, the best, the loss, and the largest error of any plan."""
    calls, worst = {}, 0.0
    exact: dict[Problem, Any] = {}
    for name, (pair, at) in candidates(problem).items():
        if at not in exact:
            inputs = at.inputs()
            exact[at] = inputs, measure.truth(at, inputs)
        inputs, truth = exact[at]
        with plan.force(forward=pair[0], backward=pair[1]):
            worst = max(worst, *measure.errors(ALTERNATIVES["ssdd_ext"], at, inputs, truth).values())
        calls[name] = forced(pair, at, inputs)
    # A user's call runs the chosen plan, or one fused pass if the problem is small.
    inputs = exact[problem][0]
    calls[AS_CALLED] = lambda: measure.step(ALTERNATIVES["ssdd_ext"], problem, inputs)
    samples = interleaved(calls, problem.device, repeats, seconds, settle=0.0)
    times = {name: summary(t) for name, t in samples.items()}
    best = min((name for name in times if name != AS_CALLED), key=lambda name: times[name]["median"])
    picked = planned(problem)
    return {
        "problem": asdict(problem),
        "chosen": f"{picked.forward} + {picked.backward}",
        "best": best,
        "loss": max(0.0, times[AS_CALLED]["median"] / times[best]["median"] - 1),
        "limit": LIMIT,
        "seconds": times,
        "error": worst,
        **machine.describe(problem.device),
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    a = arguments(__doc__, 1.0, argv)
    shapes = [Problem(12, 20, 10, 4), Problem(12, 20, 40, 4)] if a.quick else grid()
    rows = []
    for shape in shapes:
        row = measure_shape(replace(shape, device=a.device), a.repeats, a.seconds)
        if row["loss"] > LIMIT and not a.quick:  # other load on the machine, or a wrong choice: more samples decide
            first = row["loss"]
            row = measure_shape(replace(shape, device=a.device), 4 * a.repeats, 8 * a.seconds) | {"first_loss": first}
        rows.append(row)
        sizes = f"S={shape.s} Q={shape.q} D={shape.d} C={shape.c}"
        time = seconds_text(row["seconds"][AS_CALLED]["median"])
        over = "  OVER" if row["loss"] > LIMIT else ""
        line = f"{sizes:32} chosen {row['chosen']:20} best {row['best']:34} {time:>8}  loss {100 * row['loss']:5.1f}%"
        print(line + over, flush=True)
    worst = max(rows, key=lambda r: r["loss"])
    right = sum(r["chosen"] == r["best"] for r in rows)
    print(f"{right} of {len(rows)} chosen right; the worst choice costs {100 * worst['loss']:.1f}% (at most 15%)")
    write(a, "plan", rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
