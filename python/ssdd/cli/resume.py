"""What a run was asked to do, kept in its folder, so that ``--resume FOLDER`` is all there is to type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..config import InputError, Preset, as_dict, from_dict
from ..report import write_json

FILE = "run.json"
CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in its folder."""

ARGUMENTS: dict[str, type] = {
    "data": str, "size": int, "seed": int, "teacher": str, "representations": str, "share": str,
    "classes": str, "teacher_prefix": str,
}  # fmt: skip
OPTIONAL = ("size", "teacher", "representations", "share", "classes", "teacher_prefix")


@dataclass
class Run:
    """The arguments a run began with. ``data`` and files of the user's as absolute paths: any directory may resume."""

    settings: Preset
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
            return cls(from_dict(Preset(name=""), stored), arguments)
        except FileNotFoundError:
            raise InputError(f"resume: {folder} holds no run that can go on (no {FILE})") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"resume: {folder / FILE} cannot be read ({error})") from None

    def write(self, folder: Path) -> None:
        """Keep it in ``folder``."""
        content = {"settings": as_dict(self.settings), "arguments": self.arguments}
        write_json(folder / FILE, content)

    def given(self, context: typer.Context, **values: Any) -> list[Any]:
        """Each of ``values`` as typed now, where it was typed, else as the run began."""

        def typed(name: str) -> bool:
            source = context.get_parameter_source(name)
            return source is not None and source.name == "COMMANDLINE"

        return [value if typed(name) else self.arguments.get(name, value) for name, value in values.items()]


def lasting(name: str | Path | None) -> str | None:
    """A name of data or of a teacher that means the same from another directory."""
    if name is None or name == "digits":  # the embedded set, also beside a folder of that name
        return name
    factory, at, weights = str(name).partition("@")
    if at and Path(weights).exists():
        return f"{factory}@{Path(weights).resolve()}"
    return str(Path(name).resolve()) if Path(name).exists() else str(name)
