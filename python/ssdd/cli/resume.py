"""The arguments of a run, stored in its folder, so that ``--resume FOLDER`` needs no other option."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ssdd

from ..config import UNREADABLE, InputError, Settings, as_dict, current_names, from_dict

FILE = "run.json"
CHECKPOINTS = "checkpoints"
"""The subfolder of a run's checkpoints."""

FINISHED = "finished"
"""The subfolder of a finished run's last checkpoint, from which --steps lengthens it."""

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
    "model": str,
    "stem": str,
    "width": float,
    "like": str,
    "licence": str,
    "seeds": int,
    "device": str,
}
OPTIONAL = ("size", "teacher", "representations", "share", "classes", "teacher_prefix", "like", "licence")


@dataclass
class Run:
    """The arguments of a run. ``data`` and the user's files are absolute paths, so any directory can resume it."""

    settings: Settings
    arguments: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, name: str = FILE) -> Run:
        """Read the file that :meth:`write` wrote to ``folder``."""
        if folder.is_file():
            raise InputError(f"resume: {folder} is a file; give the folder of its run, --resume {quote(folder.parent)}")
        try:
            content = json.loads((folder / name).read_text())
            stored, arguments = content["settings"], dict(content["arguments"])
            for key, value in arguments.items():
                kind = ARGUMENTS.get(key, type(value))
                if type(value) is not kind and not (value is None and key in OPTIONAL):
                    raise InputError(f"arguments.{key}: expected {kind.__name__}, got {value!r}")
            return cls(from_dict(Settings(name=""), current_names(stored)), arguments)
        except FileNotFoundError:
            why = f"has no run to resume (no {name})" if folder.is_dir() else "does not exist"
            raise InputError(f"resume: {folder} {why}") from None
        except UNREADABLE as error:
            raise InputError(f"resume: {folder / name} cannot be read ({error})") from None

    def write(self, folder: Path, name: str = FILE) -> None:
        """Write the arguments to ``folder``."""
        from ..report import write_json

        content = {"settings": as_dict(self.settings), "arguments": self.arguments}
        write_json(folder / name, content)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def say_how_to_go_on(command: str, folder: Path) -> Iterator[None]:
    """Add ``command``, which continues the run in ``folder``, to the message of an error that ends it."""
    try:
        yield
    except ssdd.Stopped as error:
        raise ssdd.Stopped(f"{error}. Go on with: {command}") from None
    except KeyboardInterrupt:
        if not (folder / FILE).is_file():
            raise
        raise KeyboardInterrupt(f"stopped. Go on with: {command}") from None
    except ssdd.ProcessLost as error:
        raise ssdd.ProcessLost(f"{error}. Go on from the last checkpoint with: {command}") from None
    except OSError as error:
        if error.errno not in NO_ROOM or not any((folder / CHECKPOINTS).glob("*.safetensors")):
            raise  # the disk is not full, or there is no checkpoint to continue from
        raise OSError(f"{error}. The checkpoints are kept; make room, then go on with: {command}") from error


@contextmanager
def stop_at_once(how: Callable[[], str] = lambda: "") -> Iterator[None]:
    """End the block at once on Ctrl-C or SIGTERM, also in the middle of a long call of PyTorch.

    ``how``: returns a sentence on how to go on, at that moment.
    """

    def message() -> str:
        return f"stopped. {how()}".removesuffix(". ")

    with ssdd.interruptible(lambda line: None, break_off(message)) as stop:
        try:
            with stop.at_once():
                yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(message()) from None


def broken_step(command: str) -> Callable[[], NoReturn]:
    """Return :func:`break_off` for a run of steps that ``command`` continues."""
    return break_off(lambda: f"stopped in the middle of a step, which is done again. Go on with: {command}")


def break_off(message: Callable[[], str]) -> Callable[[], NoReturn]:
    """Return what ends the process in the middle of a slow step, after a request to stop.

    The step may be a single long call of PyTorch, which nothing interrupts. All files are written completely or not at
    all, so that the run goes on from its newest checkpoint as after a kill. Not for several processes, which stop after
    the same step.
    """

    def end() -> NoReturn:
        shown = "\r\x1b[2K\x1b[?25h" if sys.stderr.isatty() else ""  # clear the line of progress, show the cursor
        text = f"{shown}{message()}\n"
        with suppress(OSError):
            os.write(2, text.encode())
        os._exit(130)

    return end


def check_length(folder: Path, stage: str, setting: str, steps: int) -> None:
    """Raise :class:`InputError` if the run in ``folder`` has done more than ``steps`` steps of ``stage`` already."""
    files = ssdd.Checkpoints(folder / CHECKPOINTS, stage).files()
    done = int(files[-1].stem.split("-")[-1]) if files else 0
    if done > steps:
        raise InputError(
            f"{setting}: {done:,} steps of this run are done already; expected at least as many, got {steps:,}"
        )


def quote(path: Path) -> str:
    """Quote a path for a shell."""
    return shlex.quote(str(path))


def make_absolute(name: str | Path | None) -> str | None:
    """Return a name of data or of a teacher that means the same from any directory."""
    if name is None or name == "digits":  # the embedded set, even if there is a folder of that name
        return name
    factory, at, weights = str(name).partition("@")
    if at and Path(weights).exists():
        return f"{factory}@{Path(weights).resolve()}"
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
