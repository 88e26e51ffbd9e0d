"""HTML that is escaped unless it was made here: what comes from files, logs and settings is text and stays text."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"br", "meta", "input", "link", "img"}


class Html(str):
    """Markup that is safe to write as it is; any other text is escaped when it becomes a part of one."""


def join(parts: Iterable[object], between: str = "") -> Html:
    """The parts one after the other; those that are no :class:`Html` are escaped."""
    return Html(Html(between).join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. ``None`` leaves out a child or an attribute; ``class_`` is class, ``data_x`` is data-x."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value), quote=True)}"')
    opened = f"<{' '.join(words)}>"
    if name in VOID:
        return Html(opened)
    return Html(f"{opened}{join(child for child in children if child is not None)}</{name}>")
