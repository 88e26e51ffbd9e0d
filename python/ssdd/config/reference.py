"""Reference of all settings: each with its sentence, its default, and its value in the published runs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

from docstring_parser import parse_from_object

from .presets import OFFICIAL, PRESETS, PUBLISHED
from .settings import Settings
from .values import fields


@dataclass(frozen=True)
class Setting:
    """One field of one stage."""

    key: str
    """STAGE.FIELD, which is also the flag's name and the place in a file of settings."""
    kind: Any
    default: Any
    sentence: str
    """The field's docstring, on one line."""
    published: dict[str, Any]
    """Published preset -> its value of the field."""
    code: str | None
    """The published code's side, if paper and code differ."""

    @property
    def published_text(self) -> str:
        """The published values as text: one value, or each with the presets that have it."""
        groups: dict[str, list[str]] = {}
        for name, value in self.published.items():
            groups.setdefault(plain(value), []).append(name)
        parts = [text if len(groups) == 1 else f"{text} ({', '.join(names)})" for text, names in groups.items()]
        return ", ".join(parts) + (f"; the code: {self.code}" if self.code else "")


def plain(value: Any) -> str:
    """Return a value as it is typed after its flag."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def stage_sentence(stage: str) -> str:
    """Return the first paragraph of a stage's docstring, on one line. ``stage``: "teacher.augment", for example."""
    text = inspect.getdoc(type(attrgetter(stage)(Settings("default")))) or ""
    return " ".join(text.split("\n\n")[0].split())


@cache
def _sentences(stage_class: type) -> dict[str, str]:
    """Return the docstring of every field of a stage, each on one line. Parsing them takes longer than all else."""
    return {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(stage_class).params}


def settings_reference() -> list[Setting]:
    """Return every setting, stage by stage, in the order of the dataclasses."""
    settings = []
    default = Settings("default")
    for key, kind, value in fields(default):
        stage, _, name = key.rpartition(".")
        sentence = _sentences(attrgetter(stage)(default).__class__).get(name, "")
        published = {preset: attrgetter(key)(PRESETS[preset]) for preset in PUBLISHED}
        settings.append(Setting(key, kind, value, sentence, published, OFFICIAL.get(key)))
    return settings
