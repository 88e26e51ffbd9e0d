"""Generate parts of the site from the code: the table of settings, the list of public names, the notes on code blocks.

mkdocs imports this file (``hooks`` of mkdocs.yml) and calls :func:`on_page_markdown` for each page.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ("cifar100", "tinyimagenet", "imagenet64", "imagenette")
"""The presets that hold the settings of the paper's runs."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the directives of a page: include, generated, not run, run first (each an HTML comment)."""
    markdown = re.sub(r"^<!-- include: (\S+) -->$", lambda m: include(m[1]), markdown, flags=re.MULTILINE)
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _directives(part) for part in parts)


def _directives(text: str) -> str:
    text = re.sub(r"^<!-- run first\n.*?^-->\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^<!-- not run: (.*?) -->$", _reason, text, flags=re.MULTILINE)
    text = re.sub(r"^<!-- generated: settings -->$", lambda _: settings_tables(), text, flags=re.MULTILINE)
    return re.sub(r"^<!-- generated: names of ([\w.]+) -->$", lambda m: public_names(m[1]), text, flags=re.MULTILINE)


def include(path: str) -> str:
    """Return the text of a Markdown file outside ``docs``, with its links relative to ``docs``."""
    return (ROOT / path).read_text(encoding="utf-8").replace("](docs/", "](")


def _reason(match: re.Match[str]) -> str:
    return f"Not run by the tests: {match[1]}.\n{{ .not-run }}\n"


# --- API reference --------------------------------------------------------------------------------------


def public_names(package: str) -> str:
    """Return one mkdocstrings directive per name in ``__all__`` of the package: functions, then classes.

    The names of a part of the package, such as ``ssdd_ext.nn``, have no headings.
    """
    module = importlib.import_module(package)
    objects = {name: getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}
    functions = [name for name, value in objects.items() if inspect.isfunction(value)]
    classes = [name for name, value in objects.items() if inspect.isclass(value)]
    lines: list[str] = []
    for heading, names in (("Functions", functions), ("Classes", classes)):
        if "." not in package:
            lines.append(f"## {heading}\n")
        for name in names:
            value = objects[name]
            lines.append(f"::: {value.__module__}.{value.__qualname__}\n")
    return "\n".join(lines)


# --- settings -------------------------------------------------------------------------------------------


def settings_tables() -> str:
    """Return every field of every settings dataclass: its name, default, published value and sentence."""
    config = importlib.import_module("ssdd.config")
    presets = {name: config.PRESETS[name] for name in PUBLISHED}
    root = type(next(iter(presets.values())))
    return "\n".join(_stage(root("default"), presets, config.OFFICIAL))


def _stage(settings: Any, presets: dict[str, Any], official: dict[str, str], path: str = "") -> Iterator[str]:
    groups = [f.name for f in dataclasses.fields(settings) if dataclasses.is_dataclass(getattr(settings, f.name))]
    fields = [f.name for f in dataclasses.fields(settings) if f.name not in groups]
    if path:
        about, named = _described(inspect.getdoc(type(settings)) or "")
        sentences = field_docstrings(type(settings))
        yield f"## {path}\n\n`{type(settings).__name__}`: {about}\n"
        yield "| setting | what it does | default | published presets |\n|---|---|---|---|"
        for name in fields:
            key = f"{path}.{name}"
            published = _published({preset: _at(values, key) for preset, values in presets.items()})
            if key in official:
                published += f"; the code: `{official[key]}`"
            sentence = " ".join(filter(None, (sentences.get(name), named.get(name))))
            yield f"| `{name}` | {_cell(sentence)} | {_shown(getattr(settings, name))} | {published} |"
        yield ""
    for name in groups:
        yield from _stage(getattr(settings, name), presets, official, f"{path}.{name}" if path else name)


def _at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def _published(values: dict[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for preset, value in values.items():
        groups.setdefault(_shown(value), []).append(preset)
    if len(groups) == 1:
        return next(iter(groups))
    return "<br>".join(f"{value} ({', '.join(presets)})" for value, presets in groups.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{'-'.join(map(str, value))}`"
    return f"`{value:,}`" if isinstance(value, int) and value >= 10_000 else f"`{value}`"


def field_docstrings(settings: type) -> dict[str, str]:
    """Return field -> the string below it in the source of the dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in zip(body, body[1:], strict=False):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = str(text.value.value)  # type: ignore[attr-defined]
    return found


def _described(docstring: str) -> tuple[str, dict[str, str]]:
    """Return a class docstring without its list of fields, and that list: field -> description."""
    named: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        named[match[1].split(".")[-1]] = textwrap.dedent(match[2]).strip()
        return ""

    rest = re.sub(r"^``([\w.]+)``\n((?: {4}.*\n?)+)", take, docstring, flags=re.MULTILINE)
    rest = re.sub(r"\n\n[^\n]*:\s*\Z", "", rest.strip())  # the sentence that announced the list
    return _plain(rest), named


def _plain(text: str) -> str:
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(_plain(text).replace("|", r"\|").split())
