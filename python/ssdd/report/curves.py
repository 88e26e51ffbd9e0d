"""The curves of a run, from the events of its log: one per seed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import InputError

NUMBERS = ("loss", "lr", "mean_age", "untrained_share")
"""What an event "distill" says of a step."""

_SEED = re.compile(r"^(?P<method>.*), seed (?P<seed>\d+)$")


@dataclass
class Curve:
    """One distillation: quantity -> step -> value. ``"step_time"`` is in seconds per outer step."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, what: str, step: int, value: float) -> None:
        """Take one value in; a later one of the same step takes its place."""
        if math.isfinite(value):
            self.values.setdefault(what, {})[step] = value


@dataclass(frozen=True)
class Band:
    """Mean over the seeds and its standard error, step by step."""

    steps: list[int]
    mean: list[float]
    error: list[float]
    """nan where one seed alone has the step."""
    seeds: int


def read_events(file: Path) -> list[dict[str, Any]]:
    """The events of a log; a last line that was cut short is left out. Raises :class:`InputError` if it is no log."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a readable log ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError('expected an object with "event"')
        except (ValueError, RecursionError) as error:
            if number == len(lines) or _begins_anew(lines[number]):
                continue  # a process that was killed left half a line
            raise InputError(f"{file}, line {number}: not an event of a run ({error})") from None
        found.append(event)
    return found


def _begins_anew(line: str) -> bool:
    """True if this line is the first of a run that went on."""
    return '"event": "start"' in line


def curves_of(events: Iterable[Mapping[str, Any]], file: Path) -> dict[str, dict[int, Curve]]:
    """Method -> seed -> curve. A run of one seed says it in its first event; others in the name of the task."""
    found: dict[str, dict[int, Curve]] = {}
    seed, last = 0, dict[tuple[str, int], tuple[int, float]]()
    for event in events:
        if event["event"] == "start":
            seed, last = event.get("seed", 0), {}
            if not isinstance(seed, int):
                raise InputError(f"{file}: the seed of a run is no whole number: {seed!r}")
        if event["event"] not in ("distill", "readout"):
            continue
        match = _SEED.match(str(event.get("task", "")))
        method, number = (match["method"], int(match["seed"])) if match else ("", seed)
        curve = found.setdefault(method, {}).setdefault(number, Curve())
        try:
            step, seconds = int(event["step"]), float(event.get("seconds", math.nan))
            if event["event"] == "readout":
                curve.add("readout", step, float(event["error"]))
                continue
            for key in NUMBERS:
                curve.add(key, step, float(event[key]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: an event {event['event']!r} is damaged ({error!r})") from None
        before = last.get((method, number))
        if before is not None and step > before[0] and seconds > before[1]:
            curve.add("step_time", step, (seconds - before[1]) / (step - before[0]))
        last[method, number] = step, seconds
    return found


def band(curves: Sequence[Curve], what: str) -> Band | None:
    """Mean and standard error over the curves that have ``what``, at the steps that all of them have."""
    mine = [curve.values[what] for curve in curves if curve.values.get(what)]
    if not mine:
        return None
    steps = sorted(set.intersection(*(set(values) for values in mine)))
    if not steps:
        mine, steps = mine[:1], sorted(mine[0])
    means, errors = [], []
    for step in steps:
        values = [curve[step] for curve in mine]
        mean = sum(values) / len(values)
        means.append(mean)
        squares = sum((v - mean) ** 2 for v in values)
        errors.append(math.sqrt(squares / (len(values) - 1) / len(values)) if len(values) > 1 else math.nan)
    return Band(steps, means, errors, len(mine))


def last_values(curves: Iterable[Curve], what: str, pick: Callable[[Sequence[float]], float]) -> Iterator[float]:
    """``pick`` of the values of each curve that has any."""
    for curve in curves:
        if values := list(curve.values.get(what, {}).values()):
            yield pick(values)
