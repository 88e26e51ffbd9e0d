"""The finished cells of a study: one small JSON file each, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import write_atomically
from ..config import InputError, differences
from .plan import Row

SOURCE = "source"
"""The name of the set that is distilled, beside the names of the targets."""


class Cells:
    """The folder of a study's cells. ``inputs`` says what they were computed from (name of the set -> fingerprint);
    ``teachers``, the key of each teacher that is some row's own."""

    def __init__(self, folder: Path, inputs: Mapping[str, str], teachers: Mapping[Path, str] | None = None) -> None:
        self.folder, self.inputs, self.teachers = folder, dict(inputs), dict(teachers or {})

    def path(self, row: Row, seed: int, name: str) -> Path:
        return self.folder / f"{row.slug}.seed-{seed}.{name.lower()}.json"

    def read(self, row: Row, seed: int, name: str) -> dict[str, Any] | None:
        """The cell, or None where it is not finished.

        Raises :class:`InputError` where the file holds a cell of other settings, data or teacher: it is neither
        believed nor overwritten.
        """
        path = self.path(row, seed, name)
        if not path.is_file():
            return None
        cell = read_cell(path)
        found = parted(cell["settings"], row.relevant)
        found += [
            f"{key}: {cell['inputs'].get(key)} there, {here} here"
            for key, here in self._inputs(row, name).items()
            if cell["inputs"].get(key) != here
        ]
        if found:
            raise InputError(
                f"{path}: a finished cell of another configuration ({'; '.join(found[:3])}); "
                "give the row another name, or move the file away to compute it anew"
            )
        return cell

    def _inputs(self, row: Row, name: str) -> dict[str, str]:
        teacher = self.inputs["teacher"] if row.teacher is None else self.teachers[row.teacher]
        return {SOURCE: self.inputs[SOURCE], "teacher": teacher, name: self.inputs[name]}

    def write(self, row: Row, seed: int, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a finished cell."""
        cell = {"row": row.name, "from": row.source, "seed": seed, "set": name, **values,
                "settings": row.relevant, "inputs": self._inputs(row, name)}  # fmt: skip
        write_atomically(self.path(row, seed, name), (json.dumps(cell, indent=1) + "\n").encode())
        return cell


def read_cell(path: Path) -> dict[str, Any]:
    """One cell's JSON, checked to be one."""
    try:
        cell = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable cell ({error})") from None
    wanted = {"row": str, "seed": int, "set": str, "probes": dict, "settings": dict, "inputs": dict}
    if not isinstance(cell, dict) or not all(isinstance(cell.get(key), kind) for key, kind in wanted.items()):
        raise InputError(f"{path}: expected a cell of a study, with {', '.join(wanted)}")
    return cell


def parted(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """:func:`ssdd.config.differences` as text."""
    return [f"{key}: {there!r} there, {here!r} here" for key, (there, here) in differences(stored, wanted).items()]
