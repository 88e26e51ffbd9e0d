"""The errors that every room raises, and the type of the callable that a stage reports events to."""

from __future__ import annotations

import math
import time
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


class Pulse:
    """Report how far a stage is, at most every ``every`` seconds, so that a display moves in long epochs.

    The events are ``{"event": "progress", "stage", "step", "steps"}``; a step may be done in part. They depend on the
    clock, so only a report whose attribute ``moves`` is true gets them.
    """

    def __init__(self, report: Report, stage: str, steps: int, every: float = 0.5) -> None:
        self.report, self.stage, self.steps, self.every = report, stage, steps, every
        self.last = -math.inf if getattr(report, "moves", False) else math.inf

    def __call__(self, step: float) -> None:
        """Report that ``step`` steps are done, unless that was reported a moment ago."""
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            self.report({"event": "progress", "stage": self.stage, "step": step, "steps": self.steps})
