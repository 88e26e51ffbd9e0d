"""A study's page: tables of its finished cells, and comparisons of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..artifact import write_atomically
from ..config import Report, silent
from ..studies import CELLS, SOURCE, Plan, Row, compare, read_cells
from .pictures import draw_each, scatter
from .tables import Measure, entry, markdown, probe_of

BEGIN, END = "<!-- from the cells: begin -->", "<!-- from the cells: end -->"
MISSING = "missing"

CellsByKey = dict[tuple[str, int, str], dict[str, Any]]
"""(row's name, seed, set) -> cell."""


def write_page(plan: Plan, folder: Path, report: Report = silent) -> Path:
    """Write ``folder``/README.md from ``folder``/cells.jsonl. Text outside its marked part is kept.

    Args:
        plan: the rows of the study.
        folder: the folder of the cells and the page.
        report: receives ``{"event": "warning", "message"}`` for a picture that cannot be drawn and is left out.
            Default: nothing is reported.

    Returns:
        The page's file.
    """
    page = folder / "README.md"
    around = page.read_text(encoding="utf-8") if page.is_file() else f"# {plan.title}\n\n{BEGIN}\n{END}\n"
    if BEGIN not in around or END not in around:
        around += f"\n{BEGIN}\n{END}\n"
    before, after = around.split(BEGIN)[0], around.split(END)[1]
    cells = read_plan_cells(plan, folder)
    text = tables(plan, cells)
    if len(points := realism_points(plan, cells)) > 1:
        across = "total variation of the distilled images"
        picture = folder / "realism.png"
        if draw_each({picture: lambda path: scatter(points, path, across, "representation error")}, report):
            text += f"\n\nWhat realism costs:\n\n![Error against total variation]({picture.name})"
    return write_atomically(page, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def read_plan_cells(plan: Plan, folder: Path) -> CellsByKey:
    """Return the finished cells of the plan's rows, whatever settings they were computed with."""
    names = {row.name for row in plan.rows}
    return {key: cell for key, cell in read_cells(folder / CELLS).items() if key[0] in names}


def tables(plan: Plan, cells: CellsByKey) -> str:
    """Return all tables of the page as Markdown. Entries without a cell say "missing"."""
    found = {name for _, _, name in cells} | set(plan.targets)
    sets = [*([SOURCE] if plan.measure_source else []), *sorted(found - {SOURCE})]
    expected = sum(row.seeds for row in plan.rows) * len(sets)
    parts = [
        f"{len(cells)} of {expected} cells. Mean ± standard error over the seeds there are (n; in brackets if some "
        "are missing). Probes: accuracy in percent of an L2-regularised logistic regression on frozen features. "
        "Fine-tuned: accuracy after training the whole network on a share of the labels."
    ]
    for name in sets:
        parts += [f"## {'The source' if name == SOURCE else name}", _measures_table(plan, cells, name)]
    parts += ["## Against the baselines", _baselines_table(plan, cells, sets)]
    if others := _others_table(plan, cells, sets):
        parts += ["## Against other rows", others]
    if budget := _budget_table(plan, cells, sets[0]):
        parts += ["## What the rows were given", budget]
    parts += ["## What the pools did", _pool_table(plan, cells, sets[0])]
    if realism := _realism_table(plan, cells, sets[0]):
        parts += ["## How far the images are from real ones", realism]
    return "\n\n".join(parts)


def _values(cells: CellsByKey, row: Row, name: str, measure: Measure) -> dict[int, float]:
    """Return seed -> value for the seeds that have one."""
    values = {}
    for seed in range(row.seeds):
        cell = cells.get((row.name, seed, name))
        value = None if cell is None else measure(cell)
        if value is not None:
            values[seed] = value
    return values


def _error(cell: Mapping[str, Any]) -> float | None:
    return cell.get("error")


def _finetuned(cell: Mapping[str, Any]) -> float | None:
    return cell.get("finetuned")


def _kd(cell: Mapping[str, Any]) -> float | None:
    return cell.get("kd", {}).get("student")


def _text(cells: CellsByKey, row: Row, name: str, measure: Measure, digits: int) -> str:
    values = _values(cells, row, name, measure)
    there = sum((row.name, seed, name) in cells for seed in range(row.seeds))
    if not values:
        return "" if there else MISSING
    return entry(list(values.values()), digits) + ("" if there == row.seeds else f" ({there} of {row.seeds})")


def _counts(cells: CellsByKey, name: str, what: str) -> list[str]:
    """Return the numbers of labels of the probes, few first, all last."""
    keys = {key for (_, _, on), cell in cells.items() if on == name for key in cell["probes"]}
    counts = {int(key.split("/")[1]) for key in keys if key.startswith(f"{what}/")}
    return [str(n) for n in sorted(counts, key=lambda n: n or math.inf)]


def _measures_table(plan: Plan, cells: CellsByKey, name: str) -> str:
    columns: list[tuple[str, Measure, int]] = [("representation error", _error, 3)] if name == SOURCE else []
    for what, note in (("features", ""), ("output", " (predicted representation)")):
        for count in _counts(cells, name, what):
            head = f"probe, {'all labels' if count == '0' else f'{count} per class'}{note}"
            columns.append((head, probe_of(f"{what}/{count}"), 1))
    shares = {row.settings.finetune.share for row in plan.rows} - {0.0}
    if shares:
        columns.append((f"fine-tuned, {min(shares):.0%} of the labels", _finetuned, 1))
    if name in plan.classifiers:
        columns.append(("target-data-free", _kd, 1))
    if len(columns) == 1 and any(row.group for row in plan.rows):
        return _variants_table(plan, cells, name, *columns[0])
    rows = [["row", *(head for head, _, _ in columns)]]
    rows += [[row.name, *(_text(cells, row, name, m, digits) for _, m, digits in columns)] for row in plan.rows]
    return markdown(rows)


def _variants_table(plan: Plan, cells: CellsByKey, name: str, head: str, measure: Measure, digits: int) -> str:
    """Return the table of one measure: a column per variant, first the rows as the file has them."""
    groups = list(dict.fromkeys(row.group for row in plan.rows if row.group))
    by_name = {row.name: row for row in plan.rows}
    models = dict.fromkeys(row.settings.student.model for row in plan.rows if not row.group)
    rows = [[head, ", ".join(models), *groups]]
    for row in (row for row in plan.rows if not row.group):
        mine = [row, *(by_name.get(f"{row.name}, {group}") for group in groups)]
        rows.append([row.name, *("" if r is None else _text(cells, r, name, measure, digits) for r in mine)])
    return markdown(rows)


def _baselines_table(plan: Plan, cells: CellsByKey, sets: Sequence[str]) -> str:
    """Return the table of every distilled row against every selection, paired by seed."""
    made = [row for row in plan.rows if row.origin.distilled or row.source == "recomputed"]
    pairs = [(ours, theirs) for ours in made for theirs in plan.rows if _is_baseline(theirs, ours)]
    return _comparison_table(plan, cells, sets, pairs, ["0"], ("distilled set", "baseline"))


def _others_table(plan: Plan, cells: CellsByKey, sets: Sequence[str]) -> str:
    """Return the table of the rows that name another row to compare with; "" without such rows."""
    by_name = {row.name: row for row in plan.rows}
    pairs = [(row, by_name[row.against]) for row in plan.rows if row.against in by_name]
    words = ("row", "other row")
    return _comparison_table(plan, cells, sets, pairs, ["5", "0"], words) if pairs else ""


def _comparison_table(
    plan: Plan,
    cells: CellsByKey,
    sets: Sequence[str],
    pairs: Sequence[tuple[Row, Row]],
    counts: Sequence[str],
    words: tuple[str, str],
) -> str:
    """Return the table of the paired differences of ``pairs``.

    ``counts``: labels per class of the probes. ``words``: what the two of a pair are called.
    """
    measures: list[tuple[str, str, Measure, bool]] = []
    if SOURCE in sets:
        measures.append(("representation error", SOURCE, _error, True))
    for name in sets:
        known = _counts(cells, name, "features")
        for count in (c for c in counts if c in known or (c == "0" and not cells)):
            labels = "all labels" if count == "0" else f"{count} per class"
            measures.append((f"{name}, probe with {labels}", name, probe_of(f"features/{count}"), False))
        if any(row.settings.finetune.share == 1 for row in plan.rows):
            measures.append((f"{name}, fine-tuned", name, _finetuned, False))
        if name in plan.classifiers:
            measures.append((f"{name}, target-data-free", name, _kd, False))
    rows = [["row", "against", *(head for head, _, _, _ in measures)]]
    for ours, theirs in pairs:
        rows.append(
            [
                ours.name,
                theirs.name,
                *(
                    _paired_difference(_values(cells, ours, name, m), _values(cells, theirs, name, m), error)
                    for _, name, m, error in measures
                ),
            ]
        )
    legend = (
        f"Paired over the seeds both rows have: mean difference ± two standard errors, positive if the {words[0]} is "
        f"better (for the error: also by how much of the {words[1]}'s). **Bold**: beyond two standard errors, for or "
        "against."
    )
    return f"{legend}\n\n{markdown(rows)}"


def _is_baseline(theirs: Row, ours: Row) -> bool:
    """True for real images, or nothing, as what ``ours`` is compared with: of the same variant and teacher. Nothing
    counts if networks are fine-tuned, as it is training from scratch."""
    if (theirs.group, theirs.teacher) != (ours.group, ours.teacher):
        return False
    full = theirs.settings.finetune.share == 1 or theirs.kd
    return theirs.origin.selected or (theirs.source == "nothing" and full)


def _budget_table(plan: Plan, cells: CellsByKey, name: str) -> str:
    """Return images, bytes and steps of each row; "" if a cell lacks them (it is of an older version)."""
    trained = [cell for cell in cells.values() if cell.get("from") not in ("nothing", "teacher")]
    if not trained or not all("budget" in cell for cell in trained):
        return ""
    rows = [["row", "images", "kB at four bytes a number", "steps of pre-training"]]
    for row in (row for row in plan.rows if not row.group):  # variants have the pairs of these
        texts = []
        for key, unit in (("images", 1), ("bytes", 1000), ("steps", 1)):
            values = _values(cells, row, name, _budget(key)).values()
            texts.append(", ".join(dict.fromkeys(f"{value / unit:,.0f}" for value in values)))
        rows.append([row.name, *texts])
    return markdown(rows)


def _budget(key: str) -> Measure:
    return lambda cell: cell.get("budget", {}).get(key)


def _paired_difference(ours: dict[int, float], theirs: dict[int, float], error: bool) -> str:
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return MISSING
    sign = 1 if error else -1
    c = compare([sign * ours[s] for s in seeds], [sign * theirs[s] for s in seeds])
    digits = 3 if error else 1
    text = f"{c.difference:+.{digits}f}"
    if len(seeds) == 1:
        text += " (one seed)"
    else:
        text += f" ± {2 * c.standard_error:.{digits}f}"
        if abs(c.difference) > 2 * c.standard_error:
            text = f"**{text}**"
        text += f" (n = {len(seeds)})"
    return text + (f", {c.reduction:.1%}" if error else "")


def _metric(key: str, scale: float = 1.0) -> Measure:
    """Return a measure that the distillation stored in its cell. It is None if it is not known (seconds of a resumed
    run)."""

    def measure(cell: Mapping[str, Any]) -> float | None:
        value = cell["distillation"].get(key)
        return None if value is None else value * scale

    return measure


def realism_points(plan: Plan, cells: CellsByKey) -> list[tuple[str, float, float]]:
    """Return (row, total variation of its images, its representation error), means over the seeds.

    It has plain KRR-ST first, then every distilled row that differs from it only by a realism constraint. It is empty
    without such rows.
    """
    rows = [row for row in plan.rows if row.distilled]
    if not any(row.settings.distill.tv_weight or row.settings.distill.init_weight for row in rows):
        return []
    plain = [row for row in rows if not row.settings.distill.tv_weight and not row.settings.distill.init_weight][:1]
    points = []
    for row in rows:
        d = row.settings.distill
        if [replace(d, tv_weight=0.0, init_weight=0.0)] != [r.settings.distill for r in plain]:
            continue
        x = _values(cells, row, SOURCE, _metric("total_variation"))
        y = _values(cells, row, SOURCE, _error)
        if seeds := x.keys() & y.keys():
            points.append((row.name, sum(x[s] for s in seeds) / len(seeds), sum(y[s] for s in seeds) / len(seeds)))
    return points


def _pool_table(plan: Plan, cells: CellsByKey, name: str) -> str:
    columns: list[tuple[str, Measure, int]] = [
        ("untrained networks met, %", _metric("untrained_share", 100), 1),
        ("mean age of a network met", _metric("mean_age"), 1),
        ("total variation of the images", _metric("total_variation"), 3),
        ("outer steps", _metric("steps"), 0),
        ("KRR loss at the end", _metric("loss"), 4),
        ("minutes of one core", _metric("cpu_seconds", 1 / 60), 1),
    ]
    rows = [["row", "L", "T", "steps / (L·T)", *(head for head, _, _ in columns)]]
    for row in (row for row in plan.rows if row.distilled):
        d = row.settings.distill
        texts = (_text(cells, row, name, measure, digits) for _, measure, digits in columns)
        rows.append([row.name, str(d.pool), str(d.pool_steps), f"{d.steps / d.pool / d.pool_steps:.1f}", *texts])
    return markdown(rows)


def _realism_table(plan: Plan, cells: CellsByKey, name: str) -> str:
    """Return the distances of distilled images to real ones; "" if no cell has them (they are of an older version)."""
    known = [cell["distillation"].get("realism") or {} for cell in cells.values() if "distillation" in cell]
    spaces = list(dict.fromkeys(space for measured in known for space in measured))
    if not spaces:
        return ""
    to = {"start": "to the start", "nearest": "to the nearest training image"}
    columns = [(f"{space}, {text}", _distance(space, end)) for space in spaces for end, text in to.items()]
    rows = [["row", *(head for head, _ in columns)]]
    rows += [
        [row.name, *(_text(cells, row, name, measure, 3) for _, measure in columns)]
        for row in plan.rows
        if row.distilled
    ]
    legend = (
        "Mean distance of a distilled image to the image it started from, and to the nearest training image, in pixels "
        "and in the features of networks. 1 is the spread of the training images."
    )
    return f"{legend}\n\n{markdown(rows)}"


def _distance(space: str, end: str) -> Measure:
    def measure(cell: Mapping[str, Any]) -> float | None:
        return cell["distillation"].get("realism", {}).get(space, {}).get(end)

    return measure
