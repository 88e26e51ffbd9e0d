"""Every setting as a flag of its own, and the verb that prints them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from ..config import PRESETS, as_dict, preset, with_settings
from .options import Changes, Official, official_but_for

_FLAG = re.compile(r"--([a-z]+(?:\.[a-z0-9_]+)+)(?:=(.*))?", re.DOTALL)


def spelled_out(arguments: Iterable[str]) -> list[str]:
    """``--distill.lr 0.03`` and ``--distill.lr=0.03`` as what they stand for: ``--set distill.lr=0.03``."""
    given, found = iter(arguments), []
    for argument in given:
        flag = _FLAG.fullmatch(argument)
        if flag is None:
            found.append(argument)
        else:
            value = flag[2] if flag[2] is not None else next(given, "")
            found += ["--set", f"{flag[1]}={value}"]
    return found


def settings_command(
    name: Annotated[str, typer.Argument(metavar="PRESET", help=f"One of {', '.join(PRESETS)}.")] = "digits",
    changes: Changes = None,
    code: Official = False,
) -> None:
    """Print every setting of a preset, each as the flag that changes it."""
    pairs = dict(change.partition("=")[::2] for change in changes or [])
    chosen = official_but_for(preset(name), pairs) if code else with_settings(preset(name), pairs)
    for key, value in _flat(as_dict(chosen)):
        print(f"--{key}={'-'.join(map(str, value)) if isinstance(value, tuple) else value}")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix:  # the preset's own name is no setting
            yield prefix + key, value
