"""The directory of a run. A run never overwrites another one unless ``overwrite`` is set."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..artifact import LOCK, check_writable, lock_folder, write_atomically
from ..config import InputError

MARK = "log.jsonl"
"""The file that marks the directory of a run: each run begins by opening it."""
RUN = "run.json"
"""The file of a run that can be resumed."""
DEMO = "demo.json"
"""The same of a demonstration."""

EVENTS = "events.jsonl"
"""The log of a study, in its folder of work: it does not make that folder one that ``--overwrite`` may empty."""


def check_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return the path if :func:`new_directory` accepts it; nothing there is changed.

    Raises :class:`InputError` if the directory is not empty, unless ``overwrite`` is set and it is the directory of an
    earlier run. So a mistyped path never deletes anything else.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; give a directory for the run")
    check_writable(folder)
    if _content(folder):
        if not overwrite:
            again = (
                f"go on with `--resume {shlex.quote(str(folder))}`, "
                if any((folder / name).is_file() for name in (RUN, DEMO))
                else ""
            )
            raise InputError(f"out: {folder} is not empty; {again}choose another directory or give --overwrite")
        if not (folder / MARK).is_file():
            raise InputError(f"out: {folder} does not hold a run of ssdd (no {MARK}); it is not overwritten")
    return folder


def new_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return an empty directory at ``path``, except for its lock. Refuses what :func:`check_directory` refuses."""
    folder = check_directory(path, overwrite)
    # The mark is removed last: if this is interrupted, the folder is still recognised as a run's directory.
    for entry in sorted(_content(folder), key=lambda entry: entry.name == MARK):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def own_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Create the directory as :func:`new_directory` does and lock it for the time of the context."""
    folder = check_directory(path, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        yield new_directory(folder, overwrite)


@contextmanager
def resume_directory(folder: Path) -> Iterator[None]:
    """Lock the directory of a run that is resumed, for the time of the context."""
    check_writable(folder, "resume")
    with lock_folder(folder):
        yield


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` to ``path``, completely or not at all."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def _content(folder: Path) -> list[Path]:
    """Return the entries of the folder except its lock; none if there is no folder."""
    return [entry for entry in folder.iterdir() if entry.name != LOCK] if folder.is_dir() else []


def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return ``path`` if there is no such file yet, or ``overwrite`` is set, and if it can be written."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"out: {file} is a directory; give a file name")
    if file.exists() and not overwrite:
        raise InputError(f"out: {file} exists; choose another name or give --overwrite")
    check_writable(file)
    return file
