"""The errors every room raises, and what a stage is handed to report with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
"""What a stage reports while it runs: JSON values only, always with the key ``event``."""

Report = Callable[[Event], None]
"""What a stage is handed to report with; the progress display and the JSONL log are two of them."""


def silent(event: Event) -> None:
    """The report that says nothing: the default of every call that takes one."""


class InputError(ValueError):
    """Something the caller gave cannot be used. The message names the argument, what was expected, what came."""


class Diverged(RuntimeError):
    """The loss stopped being a finite number. ``partial`` holds the last good result, where there is one."""

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial
