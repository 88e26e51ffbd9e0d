"""The errors that every room raises, and the type of the callable that a stage reports events to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
"""A report of a running stage: JSON values only, always with the key ``event``."""

Report = Callable[[Event], None]
"""A callable that receives events. The progress display and the JSONL log are two of them."""


def silent(event: Event) -> None:
    """Ignore the event: the default report of every call that takes one."""


class InputError(ValueError):
    """An input cannot be used. The message names the argument, what was expected and what came."""


class Diverged(RuntimeError):
    """The loss is no longer a finite number.

    Args:
        message: what diverged, at which step, and what to try.
        partial: the last good result. Default None: there is none.
    """

    def __init__(self, message: str, partial: Any = None) -> None:
        super().__init__(message)
        self.partial = partial
