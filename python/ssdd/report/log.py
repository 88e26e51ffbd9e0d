"""The JSONL log: one event a line, written as it happens, so that a stopped run keeps all it said."""

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

    ``append``: go on in the file of a run that was stopped. A line that cannot be written (no space left) is lost,
    and said so once on standard error: it is no reason to lose the run.
    """

    def __init__(self, path: str | os.PathLike[str], append: bool = False) -> None:
        self._path = Path(path)
        before = self._path.read_bytes() if append and self._path.is_file() else b""
        # Unbuffered: what could not be written must not be tried again at the next line, or when the file is closed.
        self._file = open(path, "ab" if append else "wb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        if before and not before.endswith(b"\n"):
            self._file.write(b"\n")  # a killed run left half a line
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
            self._file.truncate(before)  # not half a line, which the next one would be glued to
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
    """A report that hands each event to all of ``reports``; progress to those that move."""

    def report(event: Event) -> None:
        for each in reports:
            if event["event"] != "progress" or getattr(each, "moves", False):
                each(event)

    report.moves = any(getattr(each, "moves", False) for each in reports)  # type: ignore[attr-defined]
    return report
