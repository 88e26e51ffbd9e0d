"""Settings from text: command-line flags, a file, or a mapping. jsonargparse reads them by the fields' types."""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from .errors import InputError
from .reference import Setting, plain, settings_reference, stage_sentence
from .settings import Settings
from .stored import current_name
from .values import fields, replace_fields

_ROOT = "fields"
"""The key of the settings in the parser's result. It keeps the names of stages free for options (``--teacher``)."""


class HelpFormatter(DefaultHelpFormatter):
    """Prints the help as it is written, followed by the option's default if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        named = "Default: " in text or action.default in (None, False, argparse.SUPPRESS)
        return text if named or not action.option_strings else f"{text} Default: %(default)s."


@dataclass(frozen=True)
class Kind:
    """A kind of value that no Python type describes: how to read it, and a description of what is expected."""

    expected: str
    read: Callable[[Any], Any]

    def __call__(self, text: Any) -> Any:
        try:
            return self.read(text)
        except (TypeError, ValueError):
            raise ValueError(f"expected {self.expected}. Got value: {text}") from None


def _whole_numbers(text: Any) -> tuple[int, ...]:
    parts = text.strip("[]() ").replace(",", "-").split("-") if isinstance(text, str) else text
    if parts == [""]:
        return ()
    if not isinstance(parts, list | tuple) or any(type(part) not in (int, str) for part in parts):
        raise ValueError
    return tuple(int(part) for part in parts)


WHOLE_NUMBERS = Kind("whole numbers such as 16-32", _whole_numbers)
"""Several whole numbers: "16-32", "16,32" or a list."""


def new_parser(**keywords: Any) -> ArgumentParser:
    """Return a parser that raises on an error and does not accept abbreviated options."""
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, formatter_class=HelpFormatter, **keywords)


def add_settings(parser: ArgumentParser) -> None:
    """Add every setting as a flag, --STAGE.FIELD, in one group per stage."""
    groups: dict[str, Any] = {}
    for setting in settings_reference():
        stage = setting.key.rpartition(".")[0]
        if stage not in groups:
            groups[stage] = parser.add_argument_group(f"{stage}: settings", stage_sentence(stage))
        kind = WHOLE_NUMBERS if get_origin(setting.kind) is tuple else setting.kind
        groups[stage].add_argument(
            f"--{setting.key}",
            dest=f"{_ROOT}.{setting.key}",
            type=kind,
            default=setting.default,
            metavar=_metavar(setting.kind),
            help=_help(setting),
        )


def extract_settings(namespace: Any) -> dict[str, Any]:
    """Return STAGE.FIELD -> value for the settings in a parser's result (only those typed, with ``defaults=False``)."""
    return dict(_flat(namespace.as_dict().get(_ROOT) or {}))


@cache
def _settings_parser() -> ArgumentParser:
    """Return a parser of the settings alone; making it takes longer than using it."""
    parser = new_parser()
    add_settings(parser)
    return parser


def with_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return ``settings`` with single fields changed.

    Args:
        settings: the settings to start from; they stay as they are.
        changes: STAGE.FIELD -> value, such as ``{"distill.lr": 0.03}``; the value may be text, "0.03".

    Raises:
        InputError: for an unknown name or a value of the wrong kind.
    """
    known = {key: kind for key, kind, _ in fields(settings)}
    for key in changes:
        if key not in known:
            raise InputError(unknown_setting(key, known))
    if not changes:
        return settings
    parser = _settings_parser()
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *stages, field = key.split(".")
        at = nested
        for stage in stages:
            at = at.setdefault(stage, {})
        at[field] = list(value) if isinstance(value, tuple) else value
    try:
        content = parser.parse_object({_ROOT: nested}, defaults=False)
    except argparse.ArgumentError as error:
        raise InputError(readable(error, parser)) from None
    return replace_fields(settings, extract_settings(content))


UNREADABLE = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError)
"""What the readers of TOML, YAML and JSON raise for damaged files."""


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """Read a TOML or YAML file of settings: one table per stage, with FIELD = value. Returns STAGE.FIELD -> value."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text) if file.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (*UNREADABLE, yaml.YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"config: {file}: not a readable TOML or YAML file ({why})") from None
    if not isinstance(content, dict) or any(not isinstance(table, dict) for table in content.values()):
        raise InputError(f"config: {file}: expected one table per stage ({', '.join(_stages())}), in it FIELD = value")
    return {current_name(key): value for key, value in _flat(content)}


def unknown_setting(key: str, known: Mapping[str, Any]) -> str:
    """Return the message for a name that is no setting; it lists the existing ones."""
    if current_name(key) != key:
        return f"{key}: this setting is called {current_name(key)} since version 0.2"
    stage, _, name = key.rpartition(".")
    there = [other for other in known if other.rpartition(".")[0] == stage]
    if not there:
        return f"{key}: expected STAGE.FIELD, such as distill.lr; the stages are {', '.join(_stages())}"
    names = [other.rpartition(".")[2] for other in there]
    near = difflib.get_close_matches(name, names, 1)
    meant = f"did you mean {near[0]}? There" if near else "there"
    return f"{key}: no setting {name!r} here; {meant} are {', '.join(names)}"


def readable(error: argparse.ArgumentError, parser: ArgumentParser, prefix: str = "") -> str:
    """Return a parser's error as one line: the option, what was expected, what came. ``prefix``: removed from its
    keys."""
    text = str(error).replace(f'key "{prefix}', 'key "')
    missing = re.match(r"the following arguments are required: (.*)", text)
    if missing:
        options = {action.dest: "/".join(action.option_strings) or str(action.metavar) for action in parser._actions}
        names = [name.removeprefix(prefix) for name in missing[1].split(", ")]
        return f"missing: {', '.join(options.get(name, name) for name in names)}"
    absent = re.match(r"argument (\S+): expected one argument", text)
    if absent:
        name = absent[1].split("/")[0]
        found = (action for action in parser._actions if name in action.option_strings)
        kind = next((getattr(action, "_typehint", None) or action.type for action in found), None)
        dash = f"; one that begins with a dash is written {name}=-NAME" if "path" in _expected(kind) else ""
        return f"{name.removeprefix('--')}: expected {_expected(kind)} after {absent[1]}{dash}"
    wrong = re.match(r'Parser key "([^"]+)":\s*(.*)', text, re.DOTALL)
    failed = re.match(r"argument ([^ :/]+)[^:]*: invalid .*? value: (.*)", text, re.DOTALL)
    if not wrong and not failed:
        return text[:1].lower() + text[1:]
    for action in parser._actions:
        if action.dest == (wrong and wrong[1]) or (failed and failed[1] in action.option_strings):
            came = failed[2] if failed else (re.search(r"(?:Got value|Given value): (.*)", text) or ["", "?"])[1]
            came = came if failed else repr(came)
            kind = getattr(action, "_typehint", None) or action.type
            name = action.option_strings[0] if action.option_strings else action.dest
            return f"{name.removeprefix('--')}: expected {_expected(kind)}, got {came}"
    return " ".join(text.split())


def _expected(kind: Any) -> str:
    words = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, words))}"
    if words and type(None) in words:
        return _expected(words[0])
    known = {int: "a whole number", float: "a number", bool: "true or false"}
    return kind.expected if isinstance(kind, Kind) else known.get(kind, "a text")


def _metavar(kind: Any) -> str | None:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {int: "N", float: "X", bool: "{true,false}", str: "NAME"}.get(kind, "N-N-...")


def _help(setting: Setting) -> str:
    sentence = setting.sentence + (" " if setting.sentence else "")
    text = f"{sentence}Default: {plain(setting.default)}. Published: {setting.published_text}."
    return text


def _stages() -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key, _, _ in fields(Settings("default"))))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
