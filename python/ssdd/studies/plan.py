"""The plan of a study: its rows, seeds and sets, read from TOML."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ..config import (
    FINETUNE,
    METHOD_NAMES,
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

_STAGES: dict[str, tuple[str, ...]] = {
    "nothing": ("student",),
    **dict.fromkeys(SELECTION_NAMES, ("student", "pretrain")),
    "full set": ("student", "pretrain"),
    **dict.fromkeys(METHOD_NAMES, ("student", "pretrain", "distill")),
    "recomputed": ("student", "pretrain", "distill"),
    "teacher": (),
}
"""Source of a row's pre-training -> the stages whose settings change its numbers, besides those of the measurements.

"recomputed": the images of another row, with the teacher's representations of them as new targets. "teacher": the
teacher itself is measured. The names of :mod:`ssdd.selection`: real images with their representations. The methods of
distillation: a distilled set.
"""

SOURCES = tuple(_STAGES)
_PLACES = {"nothing": 0, **dict.fromkeys(SELECTION_NAMES, 1), "full set": 3, "teacher": 4}
_OPTIONS = ("size", "classes", "teacher_prefix")
Targets = Literal["teacher", "labels"]


def is_selected(source: str) -> bool:
    """Return True for real images that a selection chose. Distilled sets are compared with these rows."""
    return source in SELECTION_NAMES


def is_distilled(source: str) -> bool:
    """Return True for a method of distillation."""
    return source in METHOD_NAMES


def place_in_table(source: str) -> int:
    """Return a number to sort rows by: no pre-training, selections, distilled sets, the full set, the teacher."""
    return _PLACES.get(source, 2)


@dataclass(frozen=True)
class Row:
    """One row of the table: a method with its settings."""

    name: str
    source: str
    """What the network is pre-trained on: one of ``SOURCES``."""
    settings: Settings
    seeds: int
    of: Row | None = None
    """For "recomputed": the row whose images are used."""
    later: bool = False
    """True if all other rows come first, with all their seeds."""
    teacher: Path | None = None
    """A teacher for this row, in place of the study's."""
    targets: Targets = "teacher"
    """Targets of selected images: the teacher's representations, or their labels."""

    @property
    def selected(self) -> bool:
        """:func:`is_selected` of the row's source."""
        return is_selected(self.source)

    @property
    def distilled(self) -> bool:
        """:func:`is_distilled` of the row's source."""
        return is_distilled(self.source)

    @property
    def slug(self) -> str:
        """The row's name, as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower().replace("'", "")).strip("-")

    @property
    def relevant(self) -> dict[str, Any]:
        """The settings that change this row's numbers. Other settings can change without making its cells invalid."""
        every = asdict(self.settings)
        content = {stage: every[stage] for stage in (*_STAGES[self.source], "evaluate", "finetune")}
        content["evaluate"].pop("random_targets")  # in a study, each row has its own targets
        if self.selected:
            content["distill"] = {"images": self.settings.distill.images}
        if self.targets != "teacher":
            content["targets"] = self.targets
        return content


@dataclass(frozen=True)
class Plan:
    """The content of a study's file, from :func:`read_plan`. A key that the file does not have is None."""

    title: str
    """The title of the page."""
    rows: tuple[Row, ...]
    """The rows of the table, in order."""
    data: str | Path | None = None
    """The images to distil."""
    teacher: str | None = None
    """A name that :meth:`ssdd.Teacher.named` knows."""
    targets: Mapping[str, str | Path] = field(default_factory=dict)
    """Name -> images of a target set."""
    size: int | None = None
    """Pixels per side that images of folders are resized to, those of targets included (default: no resizing)."""
    classes: str | None = None
    """Classes of a folder, "folders" or "none" (default: decided from the folder)."""
    teacher_prefix: str | None = None
    """The first words of the names of the teacher's weights (default: decided from the file)."""

    def order(self) -> list[tuple[Row, int]]:
        """Return (row, seed) in the order of computing: seed 0 of all rows first, so that the table is useful early.

        Rows marked "later" follow one by one, each with all its seeds. A study that is stopped then has complete rows.
        """
        seeds = range(max(row.seeds for row in self.rows))
        first = [(r, s) for s in seeds for r in self.rows if s < r.seeds and not r.later]
        return first + [(r, s) for r in self.rows if r.later for s in range(r.seeds)]


def read_plan(path: str | os.PathLike[str], *, settings: Settings | None = None, seeds: int | None = None) -> Plan:
    """Read a study's TOML file.

    Its keys: ``title``, ``preset``, ``finetune`` (a recipe of ``FINETUNE``), ``seeds`` (a number), ``data`` (a file or
    folder beside this one, "digits" or "hf:NAME"), ``teacher`` (a file beside this one), ``size``, ``classes``,
    ``teacher_prefix`` (see :class:`Plan`), tables ``targets`` (name = data) and ``set`` ("stage.field" = value, for all
    rows), and one ``[[row]]`` per row. A row has ``name``, ``from`` (one of ``SOURCES``) and optionally ``seeds``,
    ``official``, ``set``, ``teacher`` (a file, in place of the study's) and ``later`` (true: after all other rows). A
    selection may have ``targets`` ("teacher" or "labels"). "recomputed" needs ``of``, the name of a distilled row above
    it.

    Args:
        path: the file.
        settings: used in place of the file's ``preset``. Default: the preset.
        seeds: used in place of the file's ``seeds``. Default: those of the file.

    Raises:
        InputError: naming the row and the key, what was expected and what came.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable study file ({error})") from None
    known = {"title", "preset", "finetune", "seeds", "data", "teacher", "targets", "set", "row", *_OPTIONS}
    _check_keys(content, known, str(path))
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
        rows.append(_row(table, shared, seeds, rows, path, f"{path}: row {i}"))
    slugs = [row.slug for row in rows]
    if not rows or len(set(slugs)) != len(slugs) or "" in slugs:
        raise InputError(f"{path}: expected one [[row]] or more, each with a name of its own, got {slugs}")

    def beside(value: Any) -> Path:
        return path.parent / str(value)

    def named(value: Any) -> str | Path:
        return str(value) if value == "digits" or str(value).startswith("hf:") else beside(value)

    return Plan(
        content.get("title", path.stem),
        tuple(rows),
        named(content["data"]) if "data" in content else None,
        str(beside(content["teacher"])) if "teacher" in content else None,
        {name: named(value) for name, value in content.get("targets", {}).items()},
        _number(content, "size", 1, str(path)) if "size" in content else None,
        *(_text(content, key, str(path)) if key in content else None for key in ("classes", "teacher_prefix")),
    )


def _row(table: dict[str, Any], shared: Settings, seeds: int, above: list[Row], path: Path, where: str) -> Row:
    _check_keys(table, {"name", "from", "seeds", "official", "set", "of", "later", "teacher", "targets"}, where)
    source = _text(table, "from", where)
    if source not in SOURCES:
        raise InputError(f"{where}: from: expected one of {', '.join(SOURCES)}, got {source!r}")
    targets = table.get("targets", "teacher")
    if targets not in get_args(Targets) or ("targets" in table and source not in SELECTION_NAMES):
        words = ", ".join(get_args(Targets))
        raise InputError(f"{where}: targets: expected one of {words}, for a selection only, got {targets!r}")
    of = None
    if source == "recomputed" or "of" in table:
        of = next((row for row in above if row.name == table.get("of") and row.distilled), None)
        if of is None or source != "recomputed":
            raise InputError(
                f"{where}: of: expected the name of a distilled row above it, for from = 'recomputed' only, "
                f"got {table.get('of')!r}"
            )
        shared, seeds = of.settings, of.seeds
    teacher = of.teacher if of is not None else None
    if "teacher" in table:
        teacher = path.parent / _text(table, "teacher", where)
    settings = with_settings(official(shared) if table.get("official") else shared, _changes(table, where))
    if source in METHOD_NAMES:
        settings = replace_fields(settings, {"distill.method": source})
    name, number = _text(table, "name", where), _number(table, "seeds", seeds, where)
    return Row(name, source, settings, number, of, bool(table.get("later")), teacher, cast(Targets, targets))


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
    if not isinstance(table.get(key), str) or not table[key]:
        raise InputError(f"{where}: {key}: expected a text, got {table.get(key)!r}")
    return str(table[key])


def _number(table: dict[str, Any], key: str, default: int, where: str) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: {key}: expected a whole number from 1, got {value!r}")
    return value
