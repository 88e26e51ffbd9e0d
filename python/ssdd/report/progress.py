"""Progress on the terminal: one line per running stage, with loss, learning rate and time left.

A stage that will take longer than a minute is announced once, in a line that stays: how long it takes, measured on its
first steps. That line is also printed if the output is a file.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from ..config import Event, duration

WORDS = {
    "check": "checking the files",
    "read": "reading the images",
    "represent": "representing the images",
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
FEW_NETWORKS = 0.1
"""Of the networks of a pool. One of them takes minutes, and its training steps are parts of it."""
BAR, NARROW_BAR, WIDE, TIME = 24, 10, 100, 7
"""Columns of a bar, of one on a terminal narrower than WIDE, and of the time left."""


class Display:
    """A report that shows progress bars. The line of a finished stage is removed."""

    moves = True
    """It gets events of progress, at most two per second."""

    def __init__(self, console: Console | None = None, show: bool = True) -> None:
        console = console or Console(stderr=True)
        bar = BAR if console.width >= WIDE else NARROW_BAR
        self._progress = Progress(
            SpinnerColumn("line"),  # it moves while a step takes long
            TextColumn("{task.description}"),
            BarColumn(bar_width=bar),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            _Note(console, bar),
            console=console,
            disable=not (show and (console.is_terminal or console.is_jupyter)),  # else each display is an empty line
            transient=True,
        )
        self._lines: dict[str, tuple[str, TaskID]] = {}
        self._show = show
        self._begun: dict[tuple[str, str], tuple[float, float]] = {}
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
                self._progress.add_task(description, total=event["steps"], completed=event["step"], note=()),
            )
        line = self._lines[key][1]
        note: dict[str, Any] = {} if moves else {"note": _note(event)}
        self._progress.update(line, completed=event["step"], **note)
        if event["step"] >= event["steps"]:
            self._progress.remove_task(self._lines.pop(key)[1])

    def _announce(self, key: str, stage: str, step: float, steps: int) -> None:
        """Say how long the stage takes, once, after MEASURED seconds of its steps."""
        now, which = time.monotonic(), (key, stage)
        if stage == "pool":  # it is filled between steps of a distillation, whose own time begins anew
            self._begun.pop((key, "distill"), None)
        begun, first = self._begun.setdefault(which, (now, step))
        few, unit = (FEW_NETWORKS, "networks") if stage == "pool" else (FEW, "steps")
        if which in self._announced or step - first < few or now - begun < MEASURED:
            return
        self._announced.add(which)
        per_step = (now - begun) / (step - first)
        left = per_step * (steps - step)
        if left >= WORTH_SAYING and self._show:
            name = f"{key}: {WORDS[stage]}" if key else WORDS[stage]
            each = f"{per_step:.2g} s" if per_step < 10 else duration(per_step)
            self.say(f"{name}: about {duration(left)} to go ({steps - step:,.0f} {unit} of {each})")

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


class _Note(ProgressColumn):
    """What is known of a stage, as much of it as fits the line beside the steps and the time left."""

    def __init__(self, console: Console, bar: int) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._console, self._bar = console, bar

    def render(self, task: Task) -> Text:
        steps = len(f"{task.total:.0f}") if task.total else 1
        room = self._console.width - len(task.description) - self._bar - (2 * steps + 1) - TIME - 6
        parts = list(task.fields["note"])
        while parts and len("  ".join(parts)) > room:
            parts.pop()
        return Text("  ".join(parts))


def _note(event: Event) -> tuple[str, ...]:
    parts = []
    if "loss" in event:
        parts.append(f"loss {event['loss']:.4g}")
    if "lr" in event:
        parts.append(f"lr {event['lr']:.2g}")
    if "mean_age" in event:
        parts.append(f"pool age {event['mean_age']:.0f}")
        parts.append(f"untrained {event['untrained_share']:.1%}")
    return tuple(parts)
