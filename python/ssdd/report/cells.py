"""The tables of a report: what was measured, and the paired differences between methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..studies import SOURCE, compare, is_distilled, is_selected, place_in_table
from .charts import difference_chart
from .markup import Html, join, tag
from .tables import Measure, entry, probe_of

Cell = Mapping[str, Any]

KD = "target-data-free"
"""The column of students that learned from a classifier without the target's data."""


@dataclass(frozen=True)
class Column:
    """One quantity: its name, how to read it from a cell, decimals, and whether a smaller value is better."""

    name: str
    group: str
    """The head above those of several columns; empty for a column of its own."""
    head: str
    measure: Measure
    digits: int
    smaller: bool = False


def cells_section(cells: Sequence[Cell]) -> Html | None:
    """Tables of all sets, then paired differences. None if there is no cell."""
    if not cells:
        return None
    sets = sorted({str(cell["set"]) for cell in cells}, key=lambda name: (name != SOURCE, name))
    rows = _rows(cells)
    parts: list[object] = [
        tag("p", "Mean ± standard error over the seeds. Accuracies are in percent.", class_="hint"),
    ]
    for name in sets:
        mine = [cell for cell in cells if cell["set"] == name]
        title = "On the source" if name == SOURCE else f"On {name}"
        parts += [tag("h3", title), _measured(mine, rows, _columns(mine))]
    parts += _paired(cells, rows, sets)
    return join(part for part in parts if part is not None)


def _rows(cells: Sequence[Cell]) -> dict[str, str]:
    """Row -> what it is made from, in the order of the table."""
    found = {str(cell["row"]): str(cell.get("from", "")) for cell in reversed(cells)}
    names = list(dict.fromkeys(str(cell["row"]) for cell in cells))
    return {name: found[name] for name in sorted(names, key=lambda name: place_in_table(found[name]))}


def _columns(cells: Sequence[Cell]) -> list[Column]:
    found = []
    if any(cell.get("error") is not None for cell in cells):
        found.append(
            Column("representation error", "", "representation error", lambda cell: cell.get("error"), 3, True)
        )
    for what, group in (("features", "probe on features"), ("output", "probe on the predicted representation")):
        counts = {int(k.split("/")[1]) for cell in cells for k in cell["probes"] if k.startswith(f"{what}/")}
        for n in sorted(counts, key=lambda n: n or math.inf):
            labels = "all labels" if n == 0 else f"{n} label{'' if n == 1 else 's'} per class"
            head = "all labels" if n == 0 else f"{n} per class"
            found.append(Column(f"{group}, {labels}", group, head, probe_of(f"{what}/{n}"), 1))
    if any(cell.get("finetuned") is not None for cell in cells):
        found.append(Column("fine-tuned", "", "fine-tuned", lambda cell: cell.get("finetuned"), 1))
    if any("kd" in cell for cell in cells):
        found.append(Column(KD, "", KD, lambda cell: cell.get("kd", {}).get("student"), 1))
    return found


def _values(cells: Sequence[Cell], row: str, measure: Measure) -> dict[int, float]:
    """Seed -> value, for the seeds that have one."""
    found = {cell["seed"]: measure(cell) for cell in cells if cell["row"] == row}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def _measured(cells: Sequence[Cell], rows: Mapping[str, str], columns: Sequence[Column]) -> Html:
    body = []
    for row, source in rows.items():
        entries = [_values(cells, row, column.measure) for column in columns]
        seeds = sum(cell["row"] == row for cell in cells)
        texts = [entry(list(e.values()), column.digits) for e, column in zip(entries, columns, strict=True)]
        ours = is_distilled(source)
        body.append([tag("strong", row) if ours else row, *texts, str(seeds)])
    heads = [("", "method"), *((column.group, column.head) for column in columns), ("", "seeds")]
    return data_table([head for _, head in heads], body, [group for group, _ in heads])


def data_table(head: Sequence[str], body: Sequence[Sequence[object]], groups: Sequence[str] = ()) -> Html:
    """A table whose first column names the rows. ``groups``: what stands above each head; like neighbours share it."""
    above = [(name, len(list(same))) for name, same in groupby(groups)]
    cells = [tag("th", name, colspan=n, scope="colgroup" if name else None, class_="over") for name, n in above]
    return tag(
        "div",
        tag(
            "table",
            tag(
                "thead",
                tag("tr", *cells) if any(groups) else None,
                tag("tr", *(tag("th", text, scope="col") for text in head)),
            ),
            tag(
                "tbody", *(tag("tr", tag("th", row[0], scope="row"), *(tag("td", c) for c in row[1:])) for row in body)
            ),
            class_="data",
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=f"Table of {head[0]}s",
    )


def _paired(cells: Sequence[Cell], rows: Mapping[str, str], sets: Sequence[str]) -> list[object]:
    """Each distilled row against each selection of the same teacher and variant, paired by seed."""
    alike = {str(cell["row"]): (cell.get("inputs", {}).get("teacher"), cell.get("variant")) for cell in cells}
    blocks: list[tuple[str, Html]] = []
    for name in sets:
        mine = [cell for cell in cells if cell["set"] == name]
        for column in _compared(_columns(mine)):
            found = []
            for ours in (row for row, source in rows.items() if is_distilled(source)):
                for theirs in (row for row, source in rows.items() if is_selected(source)):
                    if alike[ours] != alike[theirs]:
                        continue
                    a, b = _values(mine, ours, column.measure), _values(mine, theirs, column.measure)
                    if seeds := sorted(a.keys() & b.keys()):
                        sign = 1 if column.smaller else -1
                        c = compare([sign * a[s] for s in seeds], [sign * b[s] for s in seeds])
                        found.append((ours, theirs, c.difference, c.standard_error, len(seeds)))
            if found:
                title = column.name if name == SOURCE else f"{column.name}, on {name}"
                blocks.append((title[:1].upper() + title[1:], _differences(found, column)))
    if not blocks:
        return []
    legend = (
        "The mean difference over the seeds that both methods have, with two standard errors to each side. To the "
        "right of zero the distilled set is better. A filled point is beyond two standard errors, a hollow one is not."
    )
    first, *others = (
        tag("details", tag("summary", title), block, open=not i) for i, (title, block) in enumerate(blocks)
    )
    return [tag("h3", "Paired differences"), tag("p", legend, class_="hint"), first, *others]


def _compared(columns: Sequence[Column]) -> list[Column]:
    """The quantities that get a chart: the error, and probes on the features with the fewest and with all labels."""
    probes = [column for column in columns if column.group == "probe on features"]
    kept = [column for column in columns if column.smaller] + probes[:1] + probes[1:][-1:]
    return kept + [column for column in columns if column.name in ("fine-tuned", KD)]


Difference = tuple[str, str, float, float, int]
"""Our row, theirs, mean difference, its standard error, number of seeds."""


def _differences(found: Sequence[Difference], column: Column) -> Html:
    """One chart with its table; if several rows are ours, one per row of theirs."""
    if len({ours for ours, *_ in found}) == 1:
        return _pair(found, column, [f"against {theirs}" for _, theirs, *_ in found])
    blocks = []
    for theirs in dict.fromkeys(theirs for _, theirs, *_ in found):
        mine = [each for each in found if each[1] == theirs]
        blocks += [tag("h4", f"Against {theirs}"), _pair(mine, column, [ours for ours, *_ in mine])]
    return join(blocks)


def _pair(found: Sequence[Difference], column: Column, names: Sequence[str]) -> Html:
    unit = "lower error" if column.smaller else "percentage points"
    points = [(name, mean, error) for name, (_, _, mean, error, _) in zip(names, found, strict=True)]
    chart = difference_chart(points, f"Difference ({unit})")
    body = []
    for name, (_, _, mean, error, seeds) in zip(names, found, strict=True):
        one = math.isnan(error)
        verdict = "one seed" if one else "yes" if abs(mean) > 2 * error else "no"
        spread = "" if one else f"± {2 * error:.{column.digits}f}"
        body.append([name, f"{mean:+.{column.digits}f}", spread, verdict, str(seeds)])
    table = data_table(["comparison", "difference", "2 std. errors", "beyond", "seeds"], body)
    return tag("div", tag("figure", chart), table, class_="pair")
