"""The JSONL log: one event per line, written when it happens, so that a stopped run keeps all of its events."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from ..config import Event, Report


class JsonLines:
    """A report that appends each event, with the seconds since the start, to a file. Use it as a context.

    ``append``: continue the file of a run that was stopped. A line that cannot be written (no space left) is lost, and
    the first one gives a message on standard error. The run goes on.
    """

    def __init__(self, path: str | os.PathLike[str], append: bool = False) -> None:
        self._path = Path(path)
        before = self._path.read_bytes() if append and self._path.is_file() else b""
        # Unbuffered: a failed write must not be repeated with the next line, or when the file is closed.
        self._file = open(path, "ab" if append else "wb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        if before and not before.endswith(b"\n"):
            self._file.write(b"\n")  # a killed run may leave an incomplete line
        self._start = time.monotonic()
        self._lost = False

    def __call__(self, event: Event) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - self._start, 3), **event}) + "\n"
        before = self._file.tell()
        try:
            if self._file.write(line.encode()) < len(line.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._lost:
                print(f"{self._path.name}: cannot be written ({error.strerror}); the run goes on", file=sys.stderr)
            self._lost = True
            self._file.truncate(before)  # remove an incomplete line, to which the next one would be appended
            self._file.seek(before)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self({"event": "stopped", "error": f"{type(error).__name__}: {error}"})
        self._file.close()


def both(*reports: Report) -> Report:
    """Return a report that passes each event to all of ``reports``, but progress only to those that show it."""

    def report(event: Event) -> None:
        for each in reports:
            if event["event"] != "progress" or getattr(each, "moves", False):
                each(event)

    report.moves = any(getattr(each, "moves", False) for each in reports)  # type: ignore[attr-defined]
    return report
