"""The settings of a report's runs, all of them, each beside its default and the published value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ..config import Setting, plain, settings_reference, stage_sentence
from .markup import Html, join, tag
from .record import Record

NONE = "–"


def settings_section(records: Sequence[Record]) -> Html | None:
    """One table. A switch shows only what differs from the defaults or between the runs."""
    known = [record for record in records if record.settings]
    if not known:
        return None
    flat = {record.name: {row: dict(_flat(values)) for row, values in record.settings.items()} for record in known}
    head = ["setting", *(record.name if len(known) > 1 else "value" for record in known), "default", "published"]
    shown, changed, total = [], 0, 0
    for stage, settings in groupby(settings_reference(), lambda setting: setting.key.rpartition(".")[0]):
        rows, before = [], changed
        for setting in settings:
            texts = [_value(flat[record.name], setting.key) for record in known]
            if any(text != NONE for text in texts):
                differs = len(set(texts)) > 1 or any(text not in (plain(setting.default), NONE) for text in texts)
                rows.append(_row(setting, texts, differs))
                total, changed = total + 1, changed + differs
        words = [tag("code", stage), " ", *_sentence(stage_sentence(stage))]
        above = tag("tr", tag("th", *words, scope="colgroup", colspan=len(head)), class_="stage")
        if rows:
            shown.append(tag("tbody", above, *rows, class_=None if changed > before else "same"))
    switch = tag(
        "label",
        tag("input", type="checkbox", checked=True, class_="only"),
        f" Only what differs from the defaults{' or between the runs' if len(known) > 1 else ''}: "
        f"{changed} of {total} settings",
        class_="switch",
    )
    table = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", text, scope="col") for text in head))),
        *shown,
        class_="data settings",
    )
    return join([switch, tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Settings")])


def _row(setting: Setting, texts: Sequence[str], differs: bool) -> Html:
    default = plain(setting.default)
    name = setting.key.rpartition(".")[2]
    label = tag("th", tag("code", name), tag("small", *_sentence(setting.sentence)), scope="row")
    cells = [
        tag("td", tag("strong", text), tag("span", " changed", class_="flag"))
        if text not in (default, NONE)
        else tag("td", text)
        for text in texts
    ]
    cells += [tag("td", default), tag("td", setting.published_text)]
    return tag("tr", label, *cells, class_=None if differs else "same")


def _sentence(text: str) -> list[object]:
    """A sentence of a docstring; what stands in backticks is code."""
    parts = text.replace("``", "`").split("`")
    return [tag("code", part) if i % 2 else part for i, part in enumerate(parts)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix:
            yield prefix + str(key), value


def _value(rows: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """The value of a run; of a study whose rows differ, each with the rows that have it."""
    groups: dict[str, list[str]] = {}
    for row, values in rows.items():
        if key in values:
            groups.setdefault(_plain(values[key]), []).append(row)
    if not groups:
        return NONE
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in groups.items())


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return plain(tuple(value))
    return plain(value) if isinstance(value, str | int | float | bool) else json.dumps(value)


def provenance_section(records: Sequence[Record]) -> Html:
    """The exact commands, what each run was made from, and the versions."""
    parts = []
    for record in records:
        lines: list[object] = [tag("h3", record.name) if len(records) > 1 else None]
        for command in record.commands:
            lines.append(tag("pre", tag("code", command), class_="command", tabindex=0))
        if not record.commands:
            lines.append(tag("p", "The command that made it is not recorded.", class_="note"))
        facts = {**record.inputs, **record.versions}
        terms = [tag("div", tag("dt", key), tag("dd", _plain(value))) for key, value in facts.items()]
        lines.append(tag("dl", *terms, class_="facts"))
        lines += [tag("p", note, class_="note warn") for note in record.notes]
        parts.append(tag("div", *lines))
    return tag("div", *parts, class_="runs" if len(parts) > 1 else "one")
