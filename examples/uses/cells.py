"""Finished cells: one line of JSON each, in a file to which several processes append; and the tables made of them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

BOLD_FROM = 5
"""Seeds that a difference needs to be bold: two standard errors of two seeds are exceeded by chance in three of ten."""

KEY = ("set", "task", "arm", "n", "seed")
"""What names a cell: image set, what was measured, arm, number of images or episodes, seed."""

Key = tuple[str, str, str, int, int]


class Cells:
    """The cells in ``file``. Those of one image set, ``name``, are all made with the same ``settings``.

    A line without an end is that of a process that was killed. It is ignored, and the next cell overwrites it.

    Raises:
        ValueError: if the file has cells that were made with other settings.
    """

    def __init__(self, file: Path, name: str, settings: object) -> None:
        self.file, self.settings = file, hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
        for cell in self.read().values():
            if cell["set"] == name and cell["settings"] != self.settings:
                raise ValueError(
                    f"{file}: expected cells of {name} with the settings {self.settings}, got {cell['settings']}; "
                    "choose another folder with --out"
                )

    def read(self) -> dict[Key, dict[str, Any]]:
        """Return the finished cells by their key."""
        return read_cells(self.file)

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Return those of ``keys`` that have no cell yet."""
        done = self.read()
        return [key for key in keys if key not in done]

    def append(self, key: Key, values: Mapping[str, Any]) -> None:
        """Append a cell, unless another process has appended it meanwhile."""
        rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
        cell = dict(zip(KEY, key, strict=True)) | rounded | {"settings": self.settings}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it when the file is closed
            file.seek(0)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            if key not in _parse(whole):
                file.truncate(len(whole))
                file.write((json.dumps(cell, separators=(",", ":")) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())


def read_cells(file: Path) -> dict[Key, dict[str, Any]]:
    """Return the cells of a file by their key; none if there is no such file."""
    text = file.read_bytes() if file.exists() else b""
    return _parse(text[: text.rfind(b"\n") + 1])


def _parse(text: bytes) -> dict[Key, dict[str, Any]]:
    cells: dict[Key, dict[str, Any]] = {}
    for line in text.splitlines():
        cell = json.loads(line)
        cells.setdefault(tuple(cell[name] for name in KEY), cell)
    return cells


@dataclass(frozen=True)
class Column:
    """One column of a table: a measure of a task with ``n`` images or episodes."""

    head: str
    task: str
    n: int
    measure: str
    digits: int = 1
    """Digits after the point."""
    factor: float = 1.0
    """Factor on the values, such as 100 for percent."""

    def values(self, cells: Mapping[Key, Mapping[str, Any]], data: str, arm: str) -> dict[int, float]:
        """Return the values of an arm by seed."""
        return {
            key[4]: self.factor * cell[self.measure]
            for key, cell in cells.items()
            if key[:4] == (data, self.task, arm, self.n) and cell.get(self.measure) is not None
        }

    def mean(self, cells: Mapping[Key, Mapping[str, Any]], data: str, arm: str) -> str:
        """Return "mean ± standard error over the seeds"; empty if there is no cell."""
        found = list(self.values(cells, data, arm).values())
        if not found:
            return ""
        centre, error = mean_and_error(found)
        return f"{centre:.{self.digits}f}" + ("" if error is None else f" ± {error:.{self.digits}f}")

    def difference(self, cells: Mapping[Key, Mapping[str, Any]], data: str, arm: str, other: str) -> str:
        """Return "arm - other ± two standard errors", paired by seed; bold if it exceeds these over ``BOLD_FROM`` seeds
        or more."""
        ours, theirs = (self.values(cells, data, name) for name in (arm, other))
        seeds = sorted(set(ours) & set(theirs))
        if not seeds:
            return ""
        difference, error = mean_and_error([ours[s] - theirs[s] for s in seeds])
        text = f"{difference:+.{self.digits}f}"
        if error is None:
            return text
        text += f" ± {2 * error:.{self.digits}f}"
        return f"**{text}**" if abs(difference) > 2 * error and len(seeds) >= BOLD_FROM else text


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, s/√n; None for the error of a single value."""
    return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def tables(
    cells: Mapping[Key, Mapping[str, Any]],
    data: str,
    columns: Sequence[Column],
    arms: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> list[str]:
    """Return a Markdown table with one row per arm, and one with a row per pair of arms: their difference."""
    head = [column.head for column in columns]
    means = [[arm, *(column.mean(cells, data, arm) for column in columns)] for arm in arms]
    differences = [[f"{a} − {b}", *(column.difference(cells, data, a, b) for column in columns)] for a, b in pairs]
    return markdown(["arm", *head], means) + markdown(["difference", *head], differences)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table and an empty one. Rows without a value are left out; no rows, no table."""
    kept = [row for row in rows if any(row[1:])]
    return [*(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *kept)), ""] if kept else []


def replace_tables(page: Path, lines: Sequence[str]) -> None:
    """Replace what stands between the two marks of a page of the documentation."""
    begin, end = "<!-- from the cells: begin -->", "<!-- from the cells: end -->"
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page}: expected {begin} and {end} once each")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")
