"""The results table: rows are methods, entries are mean ± standard error over the seeds; and sentences on its
results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..studies import Comparison, compare, mean_and_error

NO_PRETRAINING, RANDOM, RANDOM_LABELS, KMEANS, KRR_ST, TEACHER = (
    "no pre-training",
    "random + teacher",
    "random + labels",
    "k-means + teacher",
    "KRR-ST",
    "teacher",
)
"""The methods that the table orders and compares."""

Cell = Mapping[str, Any]
"""One method under one seed: ``method``, ``seed``, ``error`` (or None), ``probes`` (see :class:`ssdd.Cell`)."""

Measure = Callable[[Cell], float | None]
"""How a number is read from a cell; None if the cell does not have it."""


def probe_of(key: str) -> Measure:
    """Return the measure that reads the probe ``key``."""
    return lambda cell: cell["probes"].get(key)


def entry(values: Sequence[float], digits: int) -> str:
    """Return mean ± standard error as text; the mean alone for a single value; "" for none."""
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def methods(cells: Sequence[Cell]) -> list[str]:
    """Return the methods of ``cells`` in the order of the table."""
    order = [NO_PRETRAINING, RANDOM, RANDOM_LABELS, KMEANS, KRR_ST, TEACHER]
    results = list(dict.fromkeys(cell["method"] for cell in cells))
    return sorted(results, key=lambda m: order.index(m) if m in order else len(order))


def labels_per_class(count: str) -> str:
    """Return the number of labels of a probe in words. In a cell "0" means all labels."""
    return "all labels" if count == "0" else f"{count} label{'' if count == '1' else 's'} per class"


def table(cells: Sequence[Cell]) -> list[list[str]]:
    """Return head and rows as text: method, representation error, probes "features / output" for each number of
    labels, and the accuracy after fine-tuning if there is any."""
    counts = list(dict.fromkeys(key.split("/")[1] for cell in cells for key in cell["probes"]))
    tuned = any(cell.get("finetuned") is not None for cell in cells)
    rows = [["method", "representation error", *(f"probe, {labels_per_class(n)}" for n in counts)]]
    rows[0] += ["fine-tuned"] if tuned else []
    for method in methods(cells):
        mine = [cell for cell in cells if cell["method"] == method]
        row = [method, entry([c["error"] for c in mine if c["error"] is not None], 3)]
        for count in counts:
            entries = (
                entry([c["probes"][key] for c in mine if (key := f"{what}/{count}") in c["probes"]], 1)
                for what in ("features", "output")
            )
            row.append(" / ".join(filter(None, entries)))
        if tuned:
            row.append(entry([value for c in mine if (value := c.get("finetuned")) is not None], 1))
        rows.append(row)
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return ``rows`` as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def comparisons(cells: Sequence[Cell]) -> dict[str, Comparison]:
    """Compare KRR-ST with each baseline that has an error for the same seeds."""
    errors: dict[str, dict[int, float]] = {}
    for cell in cells:
        if cell["error"] is not None and math.isfinite(cell["error"]):
            errors.setdefault(cell["method"], {})[cell["seed"]] = cell["error"]
    ours = errors.get(KRR_ST, {})
    results = {}
    for method in (RANDOM, KMEANS):
        theirs = errors.get(method, {})
        if ours and ours.keys() == theirs.keys():
            results[method] = compare([ours[s] for s in ours], [theirs[s] for s in ours])
    return results


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Return the table's main results as sentences: the comparisons, and whether the probe with all labels is
    saturated."""
    lines = worth_little(cells)
    for method, c in comparisons(cells).items():
        verdict = "more than two standard errors" if c.significant else "NOT more than two standard errors"
        spread = f" ± {c.standard_error:.3f}, {verdict}"
        if math.isnan(c.standard_error):
            spread = "; one seed, so no standard error"
        lines.append(
            f"KRR-ST against {method}: representation error {_change(c.reduction)} "
            f"(paired difference {c.difference:.3f}{spread})."
        )
    means = {
        method: mean_and_error(values)[0]
        for method in methods(cells)
        if (values := [p["features/0"] for c in cells if c["method"] == method and "features/0" in (p := c["probes"])])
    }
    gain = means.get(TEACHER, math.nan) - means.get(NO_PRETRAINING, math.nan)
    if gain < 0:
        lines.append(
            f"The teacher itself reads out worse than no pre-training ({means[TEACHER]:.1f}% and "
            f"{means[NO_PRETRAINING]:.1f}%, probe with all labels): it has little to distil. Train it longer "
            "(teacher.epochs), on more images or in a larger size."
        )
    elif gain < 3:
        lines.append(
            f"The probe with all labels is saturated here: {means[NO_PRETRAINING]:.1f}% with no pre-training at all, "
            f"{means[TEACHER]:.1f}% for the teacher itself. It says nothing about the distilled set; "
            "the representation error does."
        )
    return lines


def legend(cells: Sequence[Cell]) -> list[str]:
    """Return what the columns of :func:`table` mean, those that these cells have."""
    lines = []
    if any(cell["error"] is not None for cell in cells):
        lines.append(
            "representation error: squared error on held-out images as a fraction of the teacher's variance; 0 is the "
            "teacher itself, 1 is predicting the mean"
        )
    if any(cell["probes"] for cell in cells):
        lines.append("probe: accuracy in % of a linear classifier on the features / on the predicted representations")
    if any(cell.get("finetuned") is not None for cell in cells):
        lines.append("fine-tuned: accuracy in % after training the whole network on the labelled set")
    if len({cell["seed"] for cell in cells}) > 1:
        lines.append("mean ± standard error over the seeds, each one pre-training")
    return lines


def worth_little(cells: Sequence[Cell]) -> list[str]:
    """Return a sentence per method whose predictions are no better than the mean representation, or one sentence if
    the error cannot be measured."""
    if any(cell["error"] is not None and not math.isfinite(cell["error"]) for cell in cells):
        return [
            "The teacher has one and the same representation for all held-out images, so there is no representation "
            "error. Hold out more images, or train the teacher longer (teacher.epochs)."
        ]
    lines = []
    for method in methods(cells):
        errors = [cell["error"] for cell in cells if cell["method"] == method and cell["error"] is not None]
        mean = mean_and_error(errors)[0] if errors else 0.0
        if mean >= 1:
            lines.append(
                f"{method}: error {mean:.3g} is {'worse' if mean > 1.05 else 'no better'} than predicting the mean "
                f"representation, which has 1. Train longer: distill.steps, pretrain.steps, teacher.epochs."
            )
    return lines


def _change(reduction: float) -> str:
    return f"{abs(reduction):.1%} {'lower' if reduction >= 0 else 'HIGHER'}"


def as_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return cells, table and comparisons as plain values."""
    return {
        "cells": [dict(cell) for cell in cells],
        "table": table(cells),
        "comparisons": {
            f"{KRR_ST} against {method}": {
                "difference": c.difference,
                "standard_error": _number(c.standard_error),
                "reduction": c.reduction,
                "significant": c.significant,
            }
            for method, c in comparisons(cells).items()
        },
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN
