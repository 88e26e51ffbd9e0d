"""Convert docstrings to Markdown: mkdocstrings calls :class:`Markdown` for each object that it reads."""

from __future__ import annotations

import re
from typing import Any

import griffe

RULE = re.compile(r"^=+( +=+)+$")


class Markdown(griffe.Extension):
    """Turns the reStructuredText of docstrings (roles and simple tables) into Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Drop the role of ``:func:`krr```, and write a simple table as a Markdown table."""
    lines: list[str] = []
    edges: list[int] = []
    for line in re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring).splitlines():
        text = line.strip()
        if RULE.match(text):
            first = not edges or len(lines) == 0
            starts = [m.start() for m in re.finditer(r"=+", text)]
            if first or starts != edges:
                edges, rows = starts, 0
            elif rows == 1:
                lines.append("|" + "---|" * len(edges))
            else:
                edges = []
        elif edges:
            cells = [text[a:b].strip() for a, b in zip(edges, [*edges[1:], None], strict=True)]
            lines.append("| " + " | ".join(cells) + " |")
            rows += 1
        else:
            lines.append(line)
    return "\n".join(lines)
