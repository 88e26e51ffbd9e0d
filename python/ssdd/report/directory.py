"""A run directory: everything a run writes, never on top of another run without being asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..artifact import LOCK, locked, write_atomically
from ..config import InputError

MARK = "log.jsonl"
"""The file that says "this is a run directory": each run starts by opening it."""
RUN = "run.json"
"""The file of a run that can go on."""


def check_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The path, if :func:`new_directory` would take it; what is there stays as it is.

    Raises :class:`InputError` where something is there, unless ``overwrite`` is set and it is the directory of an
    earlier run (or empty): a mistyped path never deletes anything else.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; give a directory for the run")
    if _content(folder):
        if not overwrite:
            again = f"go on with `--resume {folder}`, " if (folder / RUN).is_file() else ""
            raise InputError(f"out: {folder} is not empty; {again}choose another directory or give --overwrite")
        if not (folder / MARK).is_file():
            raise InputError(f"out: {folder} does not hold a run of ssdd (no {MARK}); it is not overwritten")
    return folder


def new_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """An empty directory at ``path``, but for its lock; refuses what :func:`check_directory` refuses."""
    folder = check_directory(path, overwrite)
    for entry in sorted(_content(folder), key=lambda entry: entry.name == MARK):  # the mark last: broken off, it is a
        if entry.is_dir() and not entry.is_symlink():  # run's directory still
            shutil.rmtree(entry)
        else:
            entry.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def own_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """:func:`new_directory`, locked: while it lasts no other run gets it, nor ``--overwrite`` empties it."""
    folder = check_directory(path, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield new_directory(folder, overwrite)


@contextmanager
def resume_directory(folder: Path) -> Iterator[None]:
    """The directory of a run that goes on, locked: while it lasts no other run works there."""
    with locked(folder):
        yield


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` to ``path``, whole or not at all."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def _content(folder: Path) -> list[Path]:
    """What is in the folder, where there is one, but for the lock of whoever works there."""
    return [entry for entry in folder.iterdir() if entry.name != LOCK] if folder.is_dir() else []


def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """``path``, checked not to be there yet unless ``overwrite`` is set."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"out: {file} is a directory; give a file name")
    if file.exists() and not overwrite:
        raise InputError(f"out: {file} exists; choose another name or give --overwrite")
    return file
