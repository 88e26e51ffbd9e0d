"""The finished cells of a study: one file with one line per cell, to which several processes append at the same time.

A line is a JSON object. Most lines are cells: ``row``, ``seed``, ``set``, the measured values and ``inputs``. The
others have the ``settings`` of a ``row``, for the cells below them. If the last line has no end, its process was
killed: it is ignored, and the next cell overwrites it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import flush_to_disk, wait_for_lock
from ..config import InputError, differences
from .plan import SOURCE, Row

CELLS = "cells.jsonl"
"""The file of a study's cells, in its folder."""

Key = tuple[str, int, str]
"""Name of the row, seed, name of the set."""

_CELL = {"row": str, "seed": int, "set": str, "probes": dict, "inputs": dict}


class Cells:
    """The cells in ``file``. ``inputs``: fingerprints of what they are computed from, by name of the set or "teacher".

    ``files``: the fingerprint of each teacher and each set of pairs that belongs to single rows. ``classifiers``: the
    fingerprint of the classifier of each target that has one.
    """

    def __init__(
        self,
        file: Path,
        inputs: Mapping[str, str],
        files: Mapping[Path, str] | None = None,
        classifiers: Mapping[str, str] | None = None,
    ) -> None:
        self.file, self.inputs = file, dict(inputs)
        self.files, self.classifiers = dict(files or {}), dict(classifiers or {})

    def read(self) -> dict[Key, dict[str, Any]]:
        """Return all finished cells, each with its ``settings``."""
        return read_cells(self.file)

    def check(self, row: Row, cell: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` if ``cell`` was computed with other settings, data or teacher than ``row`` has.

        Such a cell is neither used nor overwritten.
        """
        found = describe_differences(cell["settings"], row.relevant)
        found += [
            f"{key}: {cell['inputs'].get(key)} there, {here} here"
            for key, here in self._inputs(row, cell["set"]).items()
            if cell["inputs"].get(key) != here
        ]
        if found:
            raise InputError(
                f"{self.file}: the cell of {row.name}, seed {cell['seed']}, {cell['set']} is of another configuration "
                f"({'; '.join(found[:3])}); give the row another name, or remove that line to compute it again"
            )

    def _inputs(self, row: Row, name: str) -> dict[str, str]:
        teacher = self.inputs["teacher"] if row.teacher is None else self.files[row.teacher]
        found = {SOURCE: self.inputs[SOURCE], "teacher": teacher, name: self.inputs[name]}
        if row.origin.file is not None:
            found["pairs"] = self.files[row.origin.file]
        if row.kd and name in self.classifiers:
            found["classifier"] = self.classifiers[name]
        return found

    def append(self, row: Row, seed: int, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append a finished cell and return it. If another process has appended the same cell meanwhile, that one
        stays."""
        cell = {
            "row": row.name,
            "from": row.origin.source,
            **({"variant": row.group} if row.group else {}),
            "seed": seed,
            "set": name,
            **values,
            "inputs": self._inputs(row, name),
        }
        settings = json.loads(json.dumps(row.relevant))
        with wait_for_lock(self.file) as handle:
            text = _read(handle)
            whole = text[: text.rfind(b"\n") + 1]
            cells, latest = _parse(self.file, whole)
            if (row.name, seed, name) not in cells:
                lines = [] if latest.get(row.name) == settings else [{"row": row.name, "settings": settings}]
                _replace_end(handle, len(whole), b"".join(to_line(line) for line in [*lines, cell]))
        return cell | {"settings": settings}


def read_cells(file: Path) -> dict[Key, dict[str, Any]]:
    """Read the cells of a study, each with its ``settings``; empty if there is no such file."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror})") from None
    return _parse(file, text[: text.rfind(b"\n") + 1])[0]


def to_line(values: Mapping[str, Any]) -> bytes:
    """Return ``values`` as one line of the file."""
    return (json.dumps(values, separators=(",", ":")) + "\n").encode()


def describe_differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return :func:`ssdd.config.differences` as text."""
    return [f"{key}: {there!r} there, {here!r} here" for key, (there, here) in differences(stored, current).items()]


def _parse(file: Path, text: bytes) -> tuple[dict[Key, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the cells of complete lines, the first of each key, and the latest settings of each row."""
    cells: dict[Key, dict[str, Any]] = {}
    latest: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {number}: not a readable cell ({error})") from None
        if not isinstance(found, dict) or not isinstance(found.get("row"), str):
            raise InputError(f"{file}, line {number}: expected a cell of a study, with {', '.join(_CELL)}")
        if isinstance(found.get("settings"), dict):
            latest[found["row"]] = found["settings"]
            continue
        if not all(isinstance(found.get(key), kind) for key, kind in _CELL.items()):
            raise InputError(f"{file}, line {number}: expected a cell of a study, with {', '.join(_CELL)}")
        if found["row"] not in latest:
            raise InputError(f"{file}, line {number}: a cell of {found['row']!r}, whose settings are not above it")
        key = (found["row"], found["seed"], found["set"])
        cells.setdefault(key, found | {"settings": latest[found["row"]]})
    return cells, latest


def _read(handle: int) -> bytes:
    parts = []
    os.lseek(handle, 0, os.SEEK_SET)
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _replace_end(handle: int, start: int, text: bytes) -> None:
    """Replace the file from ``start`` on by ``text`` and flush it. If it cannot be written completely, none of it
    stays."""
    os.ftruncate(handle, start)
    os.lseek(handle, start, os.SEEK_SET)
    try:
        if os.write(handle, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush_to_disk(handle)
    except OSError:
        os.ftruncate(handle, start)
        raise
