"""A study's file: which rows, which seeds, which sets, in TOML."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ..config import FINETUNE, InputError, Settings, current_name, official, preset, with_settings
from ..selection import SELECTIONS

_STAGES: dict[str, tuple[str, ...]] = {
    "nothing": ("student",),
    **dict.fromkeys(SELECTIONS, ("student", "pretrain")),
    "full set": ("student", "pretrain"),
    "krr-st": ("student", "pretrain", "distill"),
    "recomputed": ("student", "pretrain", "distill"),
    "teacher": (),
}
"""What a row's network is pre-trained on -> the settings that its numbers depend on, beside those of the measuring.

"recomputed": the images of another row, their targets replaced by the teacher's representations of them. "teacher":
the teacher itself is measured. The names of :mod:`ssdd.selection`: real images with their representations.
"""

SOURCES = tuple(_STAGES)
_OPTIONS = ("size", "classes", "teacher_prefix")
Targets = Literal["teacher", "labels"]


@dataclass(frozen=True)
class Row:
    """One row of the table: a method with its settings."""

    name: str
    source: str
    """One of ``SOURCES``: what the network is pre-trained on."""
    settings: Settings
    seeds: int
    of: Row | None = None
    """The row whose images a "recomputed" one takes."""
    later: bool = False
    """Whether all other rows come first, with all their seeds."""
    teacher: Path | None = None
    """A teacher of the row's own, in place of the study's."""
    targets: Targets = "teacher"
    """What selected images are trained to give: the teacher's representations, or their labels."""

    @property
    def selected(self) -> bool:
        """True if the row stands for real images that a selection chose: what distilled sets are compared with."""
        return self.source in SELECTIONS

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower().replace("'", "")).strip("-")

    @property
    def relevant(self) -> dict[str, Any]:
        """The settings that this row's numbers depend on, so that changing others leaves its cells valid."""
        every = asdict(self.settings)
        found = {stage: every[stage] for stage in (*_STAGES[self.source], "evaluate", "finetune")}
        found["evaluate"].pop("random_targets")  # a study's rows say themselves what they are trained on
        if self.selected:
            found["distill"] = {"images": self.settings.distill.images}
        if self.targets != "teacher":
            found["targets"] = self.targets
        return found


@dataclass(frozen=True)
class Plan:
    """What :func:`read_plan` found. What the file of the study does not name is None."""

    title: str
    rows: tuple[Row, ...]
    data: str | Path | None = None
    """The images to distil."""
    teacher: str | None = None
    """A name that :meth:`ssdd.Teacher.named` knows."""
    targets: Mapping[str, str | Path] = field(default_factory=dict)
    """Name -> images of a target set."""
    size: int | None = None
    """Images of folders, the targets' too, are resized to so many pixels (default: they stay as they are)."""
    classes: str | None = None
    """What the folders inside a folder are, "folders" or "none" (default: the folder says it)."""
    teacher_prefix: str | None = None
    """What the names of the teacher's weights begin with (default: the file says it)."""

    def order(self) -> list[tuple[Row, int]]:
        """(row, seed), seed 0 of all rows first: the table is useful early. Rows marked "later" follow one by one, each
        with all its seeds: stopped early, a study has some of them whole and not all of them in part."""
        seeds = range(max(row.seeds for row in self.rows))
        first = [(r, s) for s in seeds for r in self.rows if s < r.seeds and not r.later]
        return first + [(r, s) for r in self.rows if r.later for s in range(r.seeds)]


def read_plan(path: str | os.PathLike[str], *, settings: Settings | None = None, seeds: int | None = None) -> Plan:
    """Read a study's TOML file. ``settings`` and ``seeds`` take the place of its ``preset`` and ``seeds``.

    Keys: ``title``, ``preset``, ``finetune`` (a recipe of ``FINETUNE``), ``seeds`` (a number), ``data``, ``teacher``
    (files, relative to this one), ``size``, ``classes``, ``teacher_prefix`` (of :class:`Plan`), tables ``targets``
    (name = file) and ``set`` ("stage.field" = value, for all rows), and one ``[[row]]`` per row with ``name``, ``from``
    (one of ``SOURCES``) and optionally ``seeds``, ``official``, ``set``, ``teacher`` (a file, in place of the study's),
    ``later`` (true: after all other rows), for a selection ``targets`` ("teacher" or "labels") and, for "recomputed",
    ``of``: the name of a "krr-st" row above it. An :class:`InputError` names what is wrong.
    """
    path = Path(path)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable study file ({error})") from None
    known = {"title", "preset", "finetune", "seeds", "data", "teacher", "targets", "set", "row", *_OPTIONS}
    _only(found, known, str(path))
    shared = settings or preset(_text(found, "preset", str(path)))
    if "finetune" in found:
        if found["finetune"] not in FINETUNE:
            raise InputError(f"{path}: finetune: expected one of {', '.join(FINETUNE)}, got {found['finetune']!r}")
        shared = replace(shared, finetune=FINETUNE[found["finetune"]])
    shared = with_settings(shared, _changes(found, str(path)))
    seeds = _number(found, "seeds", 5, str(path)) if seeds is None else seeds
    rows: list[Row] = []
    for i, table in enumerate(found.get("row", []), 1):
        rows.append(_row(table, shared, seeds, rows, path, f"{path}: row {i}"))
    slugs = [row.slug for row in rows]
    if not rows or len(set(slugs)) != len(slugs) or "" in slugs:
        raise InputError(f"{path}: expected one [[row]] or more, each with a name of its own, got {slugs}")

    def beside(value: Any) -> Path:
        return path.parent / str(value)

    return Plan(
        found.get("title", path.stem),
        tuple(rows),
        beside(found["data"]) if "data" in found else None,
        str(beside(found["teacher"])) if "teacher" in found else None,
        {name: beside(value) for name, value in found.get("targets", {}).items()},
        _number(found, "size", 1, str(path)) if "size" in found else None,
        *(_text(found, key, str(path)) if key in found else None for key in ("classes", "teacher_prefix")),
    )


def _row(table: dict[str, Any], shared: Settings, seeds: int, above: list[Row], path: Path, where: str) -> Row:
    _only(table, {"name", "from", "seeds", "official", "set", "of", "later", "teacher", "targets"}, where)
    source = _text(table, "from", where)
    if source not in SOURCES:
        raise InputError(f"{where}: from: expected one of {', '.join(SOURCES)}, got {source!r}")
    targets = table.get("targets", "teacher")
    if targets not in get_args(Targets) or ("targets" in table and source not in SELECTIONS):
        words = ", ".join(get_args(Targets))
        raise InputError(f"{where}: targets: expected one of {words}, for a selection only, got {targets!r}")
    of = None
    if source == "recomputed" or "of" in table:
        of = next((row for row in above if row.name == table.get("of") and row.source == "krr-st"), None)
        if of is None or source != "recomputed":
            raise InputError(
                f"{where}: of: expected the name of a krr-st row above it, for from = 'recomputed' only, "
                f"got {table.get('of')!r}"
            )
        shared, seeds = of.settings, of.seeds
    teacher = of.teacher if of is not None else None
    if "teacher" in table:
        teacher = path.parent / _text(table, "teacher", where)
    settings = with_settings(official(shared) if table.get("official") else shared, _changes(table, where))
    name, number = _text(table, "name", where), _number(table, "seeds", seeds, where)
    return Row(name, source, settings, number, of, bool(table.get("later")), teacher, cast(Targets, targets))


def _changes(table: dict[str, Any], where: str) -> dict[str, str]:
    changes = table.get("set", {})
    if not isinstance(changes, dict) or any(isinstance(value, dict) for value in changes.values()):
        raise InputError(f'{where}: set: expected "stage.field" = value, the name in quotes')
    return {current_name(key): "-".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in changes.items()}


def _only(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict) or set(table) - known:
        came = ", ".join(sorted(set(table) - known)) if isinstance(table, dict) else repr(table)
        raise InputError(f"{where}: expected only {', '.join(sorted(known))}, got {came}")


def _text(table: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(table.get(key), str) or not table[key]:
        raise InputError(f"{where}: {key}: expected a text, got {table.get(key)!r}")
    return str(table[key])


def _number(table: dict[str, Any], key: str, default: int, where: str) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: {key}: expected a whole number from 1, got {value!r}")
    return value
