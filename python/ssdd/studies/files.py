"""The TOML file of a study, as a :class:`Plan`; and the studies that come with the package."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from ..config import (
    FINETUNE,
    METHOD_NAMES,
    PRESETS,
    SELECTION_NAMES,
    UNREADABLE,
    InputError,
    Settings,
    current_name,
    official,
    preset,
    replace_fields,
    with_settings,
)
from .plan import SOURCE, SOURCES, Plan, Row, Targets

FOLDER = Path(__file__).parent
"""The folder of this room, which holds the studies that come with the package."""
_OPTIONS = ("size", "classes", "teacher_prefix")
_TABLES = ("targets", "classifiers", "expect", "set", "row", "variant")
_KEYS = {"title", "preset", "finetune", "seeds", "data", "teacher", "measure_source", "layout", *_OPTIONS, *_TABLES}
_ROW_KEYS = {"name", "from", "seeds", "official", "set", "of", "file", "later", "teacher", "targets", "against"}
_EXPECTED = {"channels", "size", "train", "test", "classes"}


def shipped_studies() -> dict[str, Path]:
    """Return the studies that come with the package: name -> file. ``published/`` has the paper's own settings."""
    files = [*sorted(FOLDER.glob("published/*.toml")), *sorted(FOLDER.glob("small-*.toml"))]
    return {file.relative_to(FOLDER).as_posix(): file for file in files}


def find_study(name: str | os.PathLike[str]) -> Path:
    """Return the file of a study: ``name`` itself if there is such a file, or else the shipped study of that name, with
    or without ".toml". "small/NAME" is "small-NAME"."""
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_studies()
    file = path.with_suffix(".toml").as_posix()
    for known in (file, file.replace("small/", "small-", 1)):
        if known in shipped:
            return shipped[known]
    raise InputError(f"file: {os.fspath(name)!r} does not exist; the studies of the package are {', '.join(shipped)}")


def read_plan(
    path: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    seeds: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Plan:
    """Read a study's TOML file.

    Its keys: ``title``, ``preset``, ``finetune`` (a recipe of ``FINETUNE``), ``seeds`` (a number), ``data`` (a file or
    folder beside this one, "digits" or "hf:NAME"), ``teacher`` (a file beside this one), ``size``, ``classes``,
    ``teacher_prefix``, ``measure_source``, ``layout`` (see :class:`Plan`), tables ``targets`` (name = data),
    ``classifiers`` (name of a target = file), ``expect`` (see :class:`Plan`) and ``set`` ("stage.field" = value, for
    all rows), and one ``[[row]]`` per row. A row has ``name``, ``from`` (one of ``SOURCES``) and optionally ``seeds``,
    ``official``, ``set``, ``teacher`` (a file, in place of the study's), ``later`` (true: after all other rows) and
    ``against`` (the name of a row above it: the page compares the two, paired by seed). A selection may have
    ``targets`` ("teacher" or "labels"). "recomputed" needs ``of``, the name of a distilled row above it; "reused" needs
    ``of``, the name of a row above it that has pairs; "imported" needs ``file``. A ``[[variant]]`` has ``name`` and
    ``set``: every row is there once more with these settings, on the same pairs.

    Args:
        path: the file.
        settings: used in place of the file's ``preset``. Default: the preset.
        seeds: used in place of the file's ``seeds``. Default: those of the file.
        folder: what the names of data and teachers are relative to. Default: the folder of ``path``.

    Raises:
        InputError: naming the row and the key, what was expected and what came.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable study file ({error})") from None
    _check_keys(content, _KEYS, str(path))
    near = Path(path.parent if folder is None else folder)
    shared = settings or preset(_text(content, "preset", str(path)))
    if "finetune" in content:
        recipe = content["finetune"]
        if recipe not in FINETUNE:
            raise InputError(f"{path}: finetune: expected one of {', '.join(FINETUNE)}, got {recipe!r}")
        shared = replace(shared, finetune=FINETUNE[recipe])
    shared = with_settings(shared, _changes(content, str(path)))
    seeds = _number(content, "seeds", 5, str(path)) if seeds is None else seeds
    rows: list[Row] = []
    for i, table in enumerate(content.get("row", []), 1):
        rows.append(_row(table, shared, seeds, rows, near, f"{path}: row {i}"))
    rows += _variants(content.get("variant", []), rows, str(path))
    if content.get("classifiers"):
        rows = [replace(row, kd=row.source != "teacher") for row in rows]
    slugs = [row.slug for row in rows]
    if not rows or len(set(slugs)) != len(slugs) or "" in slugs:
        raise InputError(f"{path}: expected one [[row]] or more, each with a name of its own, got {slugs}")

    def named(value: Any) -> str | Path:
        return str(value) if value == "digits" or str(value).startswith("hf:") else near / str(value)

    targets = {name: named(value) for name, value in content.get("targets", {}).items()}
    return Plan(
        content.get("title", path.stem),
        tuple(rows),
        named(content["data"]) if "data" in content else None,
        str(near / content["teacher"]) if "teacher" in content else None,
        targets,
        _number(content, "size", 1, str(path)) if "size" in content else None,
        _text(content, "classes", str(path)) if "classes" in content else None,
        _text(content, "teacher_prefix", str(path)) if "teacher_prefix" in content else None,
        classifiers=_classifiers(content, targets, near, str(path)),
        measure_source=bool(content.get("measure_source", True)),
        layout=_text(content, "layout", str(path)) if "layout" in content else "",
        expect=_expected(content, targets, str(path)),
    )


def _row(table: dict[str, Any], shared: Settings, seeds: int, above: list[Row], near: Path, where: str) -> Row:
    _check_keys(table, _ROW_KEYS, where)
    source = _text(table, "from", where)
    if source not in SOURCES:
        raise InputError(f"{where}: from: expected one of {', '.join(SOURCES)}, got {source!r}")
    targets = table.get("targets", "teacher")
    if targets not in get_args(Targets) or ("targets" in table and source not in SELECTION_NAMES):
        words = ", ".join(get_args(Targets))
        raise InputError(f"{where}: targets: expected one of {words}, for a selection only, got {targets!r}")
    of = _other_row(table, source, above, where)
    if of is not None:
        shared, seeds = of.settings, of.seeds
    teacher = of.teacher if of is not None else None
    if "teacher" in table:
        teacher = near / _text(table, "teacher", where)
    if ("file" in table) != (source == "imported"):
        raise InputError(f"{where}: file: expected a file of pairs for from = 'imported', and for no other row")
    file = near / _text(table, "file", where) if source == "imported" else None
    settings = with_settings(official(shared) if table.get("official") else shared, _changes(table, where))
    if source in METHOD_NAMES:
        settings = replace_fields(settings, {"distill.method": source})
    name, number = _text(table, "name", where), _number(table, "seeds", seeds, where)
    against = table.get("against")
    if against is not None and against not in [row.name for row in above]:
        raise InputError(f"{where}: against: expected the name of a row above it, got {against!r}")
    return Row(
        name,
        source,
        settings,
        number,
        of,
        bool(table.get("later")),
        teacher,
        cast(Targets, targets),
        file,
        against=against,
    )


def _other_row(table: dict[str, Any], source: str, above: Sequence[Row], where: str) -> Row | None:
    """Return the row that ``of`` names: a distilled one to recompute, or one with pairs to reuse."""
    if source not in ("recomputed", "reused"):
        if "of" in table:
            raise InputError(f"{where}: of: expected only for from = 'recomputed' or 'reused', got {table['of']!r}")
        return None
    named = [row for row in above if row.name == table.get("of")]
    fit = [row for row in named if row.distilled or (source == "reused" and row.source not in ("nothing", "teacher"))]
    if not fit:
        kind = "a distilled row" if source == "recomputed" else "a row with pairs"
        raise InputError(f"{where}: of: expected the name of {kind} above it, got {table.get('of')!r}")
    return fit[0].origin


def _variants(tables: Any, rows: Sequence[Row], where: str) -> list[Row]:
    """Return the rows of all variants: each row once more, with other settings and the same pairs."""
    made = []
    for i, table in enumerate(tables, 1):
        at = f"{where}: variant {i}"
        _check_keys(table, {"name", "set", "rows"}, at)
        name, changes = _text(table, "name", at), _changes(table, at)
        if wrong := [key for key in changes if key.startswith("distill.")]:
            raise InputError(f"{at}: set: a variant has the pairs of the rows, so it cannot change {wrong[0]}")
        only = table.get("rows", [row.name for row in rows])
        if unknown := set(only) - {row.name for row in rows}:
            raise InputError(f"{at}: rows: expected names of rows, got {', '.join(sorted(unknown))}")
        for row in rows:
            if row.name not in only or row.source == "teacher":
                continue
            settings = with_settings(row.settings, changes)
            source = row.source if row.source in ("nothing", "recomputed") else "reused"
            of = row.of if row.of is not None else None if source == "nothing" else row
            made.append(
                replace(
                    row,
                    name=f"{row.name}, {name}",
                    source=source,
                    settings=settings,
                    of=of,
                    targets="teacher",
                    file=None,
                    against=f"{row.against}, {name}" if row.against in only else None,
                    group=name,
                )
            )
    return made


def _classifiers(content: dict[str, Any], targets: Mapping[str, Any], near: Path, where: str) -> dict[str, str]:
    table = content.get("classifiers", {})
    _check_keys(table, set(targets), f"{where}: classifiers")
    return {key: str(name) if ":" in str(name) else str(near / str(name)) for key, name in table.items()}


def _expected(content: dict[str, Any], targets: Mapping[str, Any], where: str) -> dict[str, dict[str, int]]:
    table = content.get("expect", {})
    _check_keys(table, {SOURCE, *targets}, f"{where}: expect")
    for name, values in table.items():
        _check_keys(values, _EXPECTED, f"{where}: expect: {name}")
        for key in values:
            _number(values, key, 1, f"{where}: expect: {name}")
    return dict(table)


def _changes(table: dict[str, Any], where: str) -> dict[str, str]:
    changes = table.get("set", {})
    if not isinstance(changes, dict) or any(isinstance(value, dict) for value in changes.values()):
        raise InputError(f'{where}: set: expected "stage.field" = value, the name in quotes')
    return {current_name(key): "-".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in changes.items()}


def _check_keys(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict) or set(table) - known:
        came = ", ".join(sorted(set(table) - known)) if isinstance(table, dict) else repr(table)
        raise InputError(f"{where}: expected only {', '.join(sorted(known))}, got {came}")


def _text(table: dict[str, Any], key: str, where: str) -> str:
    if key not in table:
        choices = {"preset": PRESETS, "from": SOURCES}.get(key)
        expected = f"one of {', '.join(choices)}" if choices else "a text"
        raise InputError(f"{where}: {key}: it is missing; expected {key} = {expected}")
    if not isinstance(table[key], str) or not table[key]:
        raise InputError(f"{where}: {key}: expected a text, got {table[key]!r}")
    return str(table[key])


def _number(table: dict[str, Any], key: str, default: int, where: str) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: {key}: expected a whole number from 1, got {value!r}")
    return value
