"""A report to look at: one HTML file about one run or several side by side, which loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifact import write_atomically
from ..config import VERSION, Report
from .cells import cells_section, data_table
from .charts import STYLES, Line, legend, line_chart, number, scatter_chart
from .configuration import provenance_section, settings_section
from .curves import Curve, band, last_values
from .galleries import Pictures, images_section, side_by_side, steps_section
from .markup import Html, join, tag
from .record import Record, read_records

FILE = "report.html"
"""The report of one run, in its folder."""


@dataclass(frozen=True)
class Series:
    """The curves that share a line: the seeds of one method."""

    name: str
    curves: Sequence[Curve]


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    work: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one self-contained HTML file about the folders ``runs`` and return its path.

    ``runs``: folders that ``distill``, ``demo`` or ``study`` wrote to. Runs that differ only in the seed share a curve.
    ``out``: the file (default: ``report.html`` in the folder, or here if there are several). It is replaced.
    ``work``: where a study keeps its distilled sets (default: ``work`` in its folder).

    Raises :class:`InputError` if a folder holds no run or a file in it is damaged.
    """
    folders = [Path(run) for run in runs]
    records = read_records(folders, None if work is None else Path(work))
    file = Path(out) if out is not None else (folders[0] / FILE if len(folders) == 1 else Path(FILE))
    return write_atomically(file, page(records).encode())


def try_report(runs: Sequence[Path], report: Report, out: Path | None = None, work: Path | None = None) -> Path | None:
    """:func:`write_report` after a run: what goes wrong is a warning, for the results are complete without it."""
    try:
        return write_report(runs, out, work=work)
    except Exception as error:  # a report has many parts; none may take the results of a run with it
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        report({"event": "warning", "message": f"the report was not written ({why}); the results are complete"})
        return None


def page(records: Sequence[Record]) -> str:
    """The report of ``records`` as HTML."""
    pictures = Pictures()
    series = series_of(records)
    sections: list[tuple[str, str, str, Html | None]] = [
        ("images", "Images", "Distilled images", images_section(records, pictures)),
        ("steps", "Over the steps", "Images over the steps", steps_section(records, pictures)),
        ("results", "Results", "Results", _results(records)),
        ("curves", "Curves", "Curves", _curves(series)),
        ("coverage", "Coverage", "Coverage of the representation space", _coverage(records)),
        ("pool", "Pool", "Pool of networks", _pool(series)),
        ("settings", "Settings", "Settings", settings_section(records)),
        ("provenance", "Command", "Command and versions", provenance_section(records)),
    ]
    there = [(key, short, title, content) for key, short, title, content in sections if content is not None]
    links = [tag("li", tag("a", short, href=f"#{key}")) for key, short, _, _ in there]
    body = [tag("section", tag("h2", title), content, id=key, aria_label=title) for key, _, title, content in there]
    title = _title(records)
    return _document(
        title,
        pictures.rules,
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("header", tag("p", "ssdd report", class_="kicker"), tag("h1", title), _summary(records)),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *body, id="content", tabindex=-1),
        tag("footer", tag("p", f"Written by ssdd {VERSION}. This file loads nothing from anywhere.")),
    )


def _document(title: str, rules: Sequence[str], *body: Html) -> str:
    here = Path(__file__)
    style = here.with_name("report.css").read_text(encoding="utf-8") + "".join(rules)
    script = here.with_name("report.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"ssdd {VERSION}"),
        tag("title", title),
        tag("style", Html(style)),
    )
    parts = [head, tag("body", *body, tag("script", Html(script)))]
    return f"<!doctype html>\n{tag('html', *parts, lang='en')}\n"


def series_of(records: Sequence[Record]) -> list[Series]:
    """The lines of the charts. Runs of the same settings and inputs, but for the seed, are one."""
    groups: dict[str, list[tuple[Record, str, dict[int, Curve]]]] = {}
    for record in records:
        for method, seeds in record.curves.items():
            inputs = {key: value for key, value in record.inputs.items() if key != "seed"}
            same = record.name if record.kind != "distill" else json.dumps([record.settings, inputs], sort_keys=True)
            groups.setdefault(json.dumps([same, method]), []).append((record, method, seeds))
    found = []
    for group in groups.values():
        names = [record.name for record, _, _ in group]
        name = ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)} runs)"
        method = group[0][1]
        alone = len(records) == 1
        label = method if alone else f"{name}: {method}" if method else name
        found.append(Series(label, [curve for _, _, seeds in group for curve in seeds.values()]))
    return found


def _title(records: Sequence[Record]) -> str:
    if len(records) > 1:
        return f"{len(records)} runs side by side"
    record = records[0]
    if record.galleries:
        pairs = record.galleries[0].pairs
        source = pairs.source or str(record.inputs.get("data", "")) or "an unnamed set"
        return f"{source}: {len(pairs):,} distilled images"
    return f"{record.name}: {'a study' if record.kind == 'study' else 'a distillation'}"


def _facts(record: Record) -> dict[str, str]:
    """The figures of a run that a reader wants first."""
    curves = [curve for seeds in record.curves.values() for curve in seeds.values()]
    found: dict[str, str] = {}
    if record.galleries:
        pairs = record.galleries[0].pairs
        found["images"] = f"{len(pairs):,}"
        found["numbers per target"] = f"{pairs.targets.shape[1]:,}"
    if record.kind == "study":
        found["cells"] = f"{len(record.cells):,}"
    shown: list[tuple[str, str, Callable[[Sequence[float]], float], Callable[[float], str]]] = [
        ("outer steps", "loss", len, lambda v: f"{v:,.0f}"),
        ("loss at the end", "loss", lambda v: v[-1], number),
        ("best read-out error", "readout", min, number),
        ("ms per step", "step_time", lambda v: 1000 * sorted(v)[len(v) // 2], lambda v: f"{v:,.3g}"),
        ("mean pool age, steps", "mean_age", lambda v: v[-1], lambda v: f"{v:,.0f}"),
    ]
    if len(record.curves) == 1:
        for label, what, pick, text in shown:
            if label == "outer steps":
                values = [float(max(c.values[what])) for c in curves if c.values.get(what)]
            else:
                values = list(last_values(curves, what, pick))
            if values:
                found[label] = text(sum(values) / len(values))
    if len(curves) > 1 and len(record.curves) == 1:
        found["seeds"] = str(len(curves))
    return found


def _summary(records: Sequence[Record]) -> Html | None:
    facts = [_facts(record) for record in records]
    if len(records) == 1:
        items = [tag("div", tag("dt", key), tag("dd", value)) for key, value in facts[0].items()]
        notes = [tag("p", note, class_="note warn") for note in records[0].notes]
        return join([tag("dl", *items, class_="stats"), *notes]) if items or notes else None
    heads = list(dict.fromkeys(key for each in facts for key in each))
    body = [[record.name, *(each.get(key, "–") for key in heads)] for record, each in zip(records, facts, strict=True)]
    return data_table(["run", *heads], body)


def _chart(
    series: Sequence[Series],
    title: str,
    what: str,
    note: str,
    log: bool = False,
    unit: Callable[[float], str] = number,
) -> Html | None:
    lines = [
        Line(each.name, found, k)
        for k, each in enumerate(series[:STYLES])
        if (found := band(each.curves, what)) is not None and len(found.steps) > 1
    ]
    if not lines:
        return None
    chart = line_chart(title, "outer step", lines, log, unit)
    return tag("figure", tag("figcaption", tag("strong", title), f" {note}"), chart)


def _charts(series: Sequence[Series], charts: Sequence[Html | None]) -> Html | None:
    shown = [chart for chart in charts if chart is not None]
    if not shown:
        return None
    parts: list[object] = []
    if len(series) > 1:
        parts.append(legend({each.name: k for k, each in enumerate(series[:STYLES])}))
    if len(series) > STYLES:
        parts.append(tag("p", f"The first {STYLES} of {len(series)} methods are drawn.", class_="note"))
    seeds = max(len(each.curves) for each in series)
    if seeds > 1:
        text = f"Line: the mean over up to {seeds} seeds. Band: one standard error to each side."
        parts.append(tag("p", text, class_="hint"))
    return join([*parts, tag("div", *shown, class_="charts")])


def _curves(series: Sequence[Series]) -> Html | None:
    return _charts(
        series,
        [
            _chart(series, "KRR loss", "loss", "on real batches, mean since the entry before", log=True),
            _chart(series, "Read-out error", "readout", "of a new network on held-out images", log=True),
            _chart(
                series, "Step time", "step_time", "in milliseconds per outer step", unit=lambda v: f"{1000 * v:,.3g}"
            ),
        ],
    )


def _pool(series: Sequence[Series]) -> Html | None:
    return _charts(
        series,
        [
            _chart(series, "Mean age", "mean_age", "of the networks drawn so far, in their own training steps"),
            _chart(
                series,
                "Untrained networks",
                "untrained_share",
                "as a share of the networks drawn so far",
                unit=lambda v: f"{100 * v:.3g}%",
            ),
        ],
    )


def _coverage(records: Sequence[Record]) -> Html | None:
    columns = []
    for r, record in enumerate(records):
        shown: list[Html] = []
        for g, gallery in enumerate(record.galleries):
            if gallery.material is None or shown:
                continue
            for name, (real, targets) in gallery.material.points.items():
                share = f", {gallery.material.about['share']:.0%} of the variance" if name == "pca" else ""
                title = "Principal components" if name == "pca" else "UMAP"
                chart = scatter_chart(real, targets, gallery.material.point_labels, title, f"{r}-{g}")
                run = " · ".join(part for part in (record.name if len(records) > 1 else "", gallery.name) if part)
                note = f" the first two{share}" if name == "pca" else " distances are not to scale"
                caption = tag("figcaption", tag("strong", f"{run}: {title}" if run else title), note)
                shown.append(tag("figure", caption, chart))
        columns += shown
    if not columns:
        return None
    text = (
        "Dots: the teacher's representations of real images. Stars: the targets of the distilled images. A number is "
        "in the middle of the class of that number. The star of the image that you point at above is outlined."
    )
    return join([tag("p", text, class_="hint"), tag("div", *columns, class_="charts wide")])


def _results(records: Sequence[Record]) -> Html | None:
    columns = []
    for record in records:
        found = cells_section(record.cells)
        if found is not None:
            columns.append(tag("div", tag("h3", record.name) if len(records) > 1 else None, found))
    return side_by_side(columns) if columns else None
