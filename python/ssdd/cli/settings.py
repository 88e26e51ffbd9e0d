"""Print every setting of a preset, with its sentence, default and published value, as a file for --config.

The output is TOML: `ssdd settings cifar100 > mine.toml`, then `ssdd distill --config mine.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..config import Settings, plain, preset, settings_reference, stage_sentence
from .options import FILE, Options, PresetName, add_official, add_settings, choose_settings

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("[PRESET]",)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", type=PresetName, nargs="?", default="digits", help="The preset.")
    parser.add_argument(
        "--config", metavar="FILE", type=FILE, help="Settings from a TOML or YAML file. A flag overrides it."
    )
    add_official(parser)
    add_settings(parser)


def run(options: Options) -> None:
    chosen = choose_settings(options, preset(options.preset))
    print("\n".join(as_toml(chosen)))


def as_toml(settings: Settings) -> Iterator[str]:
    """Yield the lines of a TOML file with ``settings``, each setting below a comment that explains it."""
    stage = ""
    for setting in settings_reference():
        at, _, name = setting.key.rpartition(".")
        if at != stage:
            yield from ("",) if stage else ()
            stage = at
            yield from (f"# {line}" for line in wrap(stage_sentence(stage), 117))
            yield f"[{stage}]"
        about = f"{setting.sentence} Default: {plain(setting.default)}. Published: {setting.published_text}."
        yield from (f"# {line}" for line in wrap(about, 117))
        yield f"{name} = {_toml(attrgetter(setting.key)(settings))}"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f'"{value}"' if isinstance(value, str) else plain(value)
