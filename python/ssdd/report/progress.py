"""Progress on the terminal: one line per running stage, with loss, learning rate and time left.

A stage that will take longer than a minute is announced once, in a line that stays: how long it takes, measured on its
first steps. That line is also printed if the output is a file.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..config import Event, duration

WORDS = {
    "teacher": "training the teacher",
    "pool": "filling the pool",
    "distill": "distilling",
    "pretrain": "pre-training",
    "finetune": "fine-tuning",
    "classifier": "training the classifier",
    "kd": "learning from the classifier",
}


FEW, MEASURED, WORTH_SAYING = 3, 5.0, 60.0
"""Steps and seconds that an estimate needs, and seconds from which on it is said."""


class Display:
    """A report that shows progress bars. The line of a finished stage is removed."""

    moves = True
    """It gets events of progress, at most two per second."""

    def __init__(self, console: Console | None = None, show: bool = True) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console or Console(stderr=True),
            disable=not show,
            transient=True,
        )
        self._lines: dict[str, tuple[str, TaskID]] = {}
        self._show = show
        self._begun: dict[tuple[str, str], tuple[float, int]] = {}
        self._announced: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> None:
        stage = event["event"]
        if stage == "warning":
            self.say(f"warning: {event['message']}")
        if stage == "resume":
            self.say(f"going on from {event['file']}, after step {event['step']}")
        moves = stage == "progress"
        stage = event["stage"] if moves else stage
        if stage not in WORDS:
            return
        key = event.get("task", "")
        self._announce(key, stage, event["step"], event["steps"])
        if key in self._lines and self._lines[key][0] != stage:
            self._progress.remove_task(self._lines.pop(key)[1])
        if key not in self._lines:
            description = f"{key}: {WORDS[stage]}" if key else WORDS[stage]
            self._lines[key] = (
                stage,
                self._progress.add_task(description, total=event["steps"], completed=event["step"], note=""),
            )
        line = self._lines[key][1]
        note: dict[str, Any] = {} if moves else {"note": _note(event)}
        self._progress.update(line, completed=event["step"], **note)
        if event["step"] >= event["steps"]:
            self._progress.remove_task(self._lines.pop(key)[1])

    def _announce(self, key: str, stage: str, step: int, steps: int) -> None:
        """Say how long the stage takes, once, after MEASURED seconds of its steps."""
        now, which = time.monotonic(), (key, stage)
        begun, first = self._begun.setdefault(which, (now, step))
        if which in self._announced or step - first < FEW or now - begun < MEASURED:
            return
        self._announced.add(which)
        per_step = (now - begun) / (step - first)
        left = per_step * (steps - step)
        if left >= WORTH_SAYING and self._show:
            name = f"{key}: {WORDS[stage]}" if key else WORDS[stage]
            self.say(f"{name}: about {duration(left)} to go ({steps - step:,} steps of {per_step:.2g} s)")

    def say(self, text: str) -> None:
        """Print a line that stays, above the bars."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def _note(event: Event) -> str:
    parts = []
    if "loss" in event:
        parts.append(f"loss {event['loss']:.4g}")
    if "lr" in event:
        parts.append(f"lr {event['lr']:.2g}")
    if "mean_age" in event:
        parts.append(f"pool age {event['mean_age']:.0f}, untrained {event['untrained_share']:.1%}")
    return "  ".join(parts)
