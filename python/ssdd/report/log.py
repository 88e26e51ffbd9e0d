"""The JSONL log: one event a line, written as it happens, so that a stopped run keeps all it said."""

from __future__ import annotations

import json
import os
import time
from types import TracebackType

from ..config import Event, Report


class JsonLines:
    """A report that appends each event, with the seconds since the start, to a file. Use it as a context."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._start = time.monotonic()

    def __call__(self, event: Event) -> None:
        self._file.write(json.dumps({"seconds": round(time.monotonic() - self._start, 3), **event}) + "\n")
        self._file.flush()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self({"event": "stopped", "error": f"{type(error).__name__}: {error}"})
        self._file.close()


def both(*reports: Report) -> Report:
    """A report that hands each event to all of ``reports``."""

    def report(event: Event) -> None:
        for each in reports:
            each(event)

    return report
