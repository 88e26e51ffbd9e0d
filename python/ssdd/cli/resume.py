"""What a run was asked to do, kept in its folder, so that ``--resume FOLDER`` is all there is to type."""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ssdd

from ..config import InputError, Settings, as_dict, current_names, from_dict

FILE = "run.json"
CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in its folder."""

ARGUMENTS: dict[str, type] = {
    "data": str,
    "size": int,
    "seed": int,
    "teacher": str,
    "representations": str,
    "share": str,
    "classes": str,
    "teacher_prefix": str,
    "checkpoint_every": float,
    "skip_unreadable": bool,
    "artifact": str,
    "like": str,
}
OPTIONAL = ("size", "teacher", "representations", "share", "classes", "teacher_prefix", "like")


@dataclass
class Run:
    """The arguments a run began with. ``data`` and files of the user's as absolute paths: any directory may resume."""

    settings: Settings
    arguments: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """What :meth:`write` left in ``folder``."""
        try:
            content = json.loads((folder / FILE).read_text())
            stored, arguments = content["settings"], dict(content["arguments"])
            for key, value in arguments.items():
                kind = ARGUMENTS.get(key, type(value))
                if type(value) is not kind and not (value is None and key in OPTIONAL):
                    raise InputError(f"arguments.{key}: expected {kind.__name__}, got {value!r}")
            return cls(from_dict(Settings(name=""), current_names(stored)), arguments)
        except FileNotFoundError:
            raise InputError(f"resume: {folder} holds no run that can go on (no {FILE})") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"resume: {folder / FILE} cannot be read ({error})") from None

    def write(self, folder: Path) -> None:
        """Keep it in ``folder``."""
        from ..report import write_json

        content = {"settings": as_dict(self.settings), "arguments": self.arguments}
        write_json(folder / FILE, content)


@contextmanager
def say_how_to_go_on(command: str, folder: Path) -> Iterator[None]:
    """Complete the message of whatever ends a run that can go on; ``folder``: the run's."""
    try:
        yield
    except ssdd.Stopped as error:
        raise ssdd.Stopped(f"{error}. Go on with: {command}") from None
    except ssdd.ProcessLost as error:
        raise ssdd.ProcessLost(f"{error}. Go on from the last checkpoint with: {command}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not any((folder / CHECKPOINTS).glob("*.safetensors")):
            raise  # no room is not what ends it, or there is nothing to go on from
        raise OSError(f"{error}. The checkpoints are kept; make room, then go on with: {command}") from error


def quoted(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))


def absolute(name: str | Path | None) -> str | None:
    """A name of data or of a teacher that means the same from another directory."""
    if name is None or name == "digits":  # the embedded set, also beside a folder of that name
        return name
    factory, at, weights = str(name).partition("@")
    if at and Path(weights).exists():
        return f"{factory}@{Path(weights).resolve()}"
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
