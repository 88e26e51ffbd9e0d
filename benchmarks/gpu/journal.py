"""A step of ``make gpu`` as a list of items, and the journal that records which of them ran.

The journal is a file of JSON lines: ``{"begin": name}`` before an item and ``{"end": name, "outcome": ...}`` after it,
each written at once. If a process dies or hangs, the names and results of the items before are in the file. A process
that is started again on the same journal continues after the item that ended the first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Item = tuple[str, Callable[[], dict[str, Any]]]
"""A name, and a call that returns what is to be kept of it (JSON values). An exception is a failed item."""


class Journal:
    """Appends the begin and end of items to ``path``; with ``None`` it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        """Append one line. On a full disk this line is lost, or cut short, and the run continues."""
        if self.path is None:
            return
        try:
            with self.path.open("ab") as file:
                # A line that was cut short ends here, so that this one can be read.
                torn = file.tell() > 0 and self.path.read_bytes()[-1:] != b"\n"
                file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            print(f"{self.path}: {failure}; not written: {json.dumps(line)[:200]}", file=sys.stderr, flush=True)

    def begin(self, name: str) -> None:
        self.write({"begin": name, "at": round(time.time(), 3)})

    def end(self, name: str, outcome: str, **what: Any) -> None:
        """Record the outcome: passed, failed, skipped, or what the watching process saw: hung, crashed."""
        self.write({"end": name, "outcome": outcome, **what})

    def lines(self) -> list[dict[str, Any]]:
        """Return all complete lines; an incomplete last one is left out."""
        found = []
        text = self.path.read_text(errors="replace") if self.path is not None and self.path.exists() else ""
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def begun(self) -> set[str]:
        return {line["begin"] for line in self.lines() if "begin" in line}

    def ended(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "end" in line]

    def running(self) -> dict[str, Any] | None:
        """Return the line of the item that began and has not ended."""
        done = {line["end"] for line in self.ended()}
        open_lines = [line for line in self.lines() if "begin" in line and line["begin"] not in done]
        return open_lines[-1] if open_lines else None


def step_parser(
    doc: str | None, name: str, quick: str = "tiny sizes: shows that the script runs", also: str = ""
) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every step's script.

    Args:
        doc: the script's docstring.
        name: the step, whose journal is ``<name>.jsonl``.
        quick: the help of ``--quick``.
        also: another file that the step writes.
    """
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    files = f"the journal {name}.jsonl{also and f' and of {also}'}"
    p.add_argument("--out", type=Path, help=f"folder of {files} (default: none is written)")
    p.add_argument("--quick", action="store_true", help=quick)
    return p


def open_journal(out: Path | None, name: str) -> Journal:
    """Return the step's journal in the folder ``out``; with None, one that writes nothing."""
    return Journal(out / f"{name}.jsonl" if out else None)


def run_items(items: Iterable[Item], journal: Journal) -> bool:
    """Run the items that the journal does not have, one line of output each; return True if all of them passed."""
    seen, good = journal.begun(), True
    for name, call in items:
        if name in seen:
            continue
        print(f"{name} ... ", end="", flush=True)
        journal.begin(name)
        begin = time.perf_counter()
        try:
            kept = call()
        except Exception as failure:
            good = False
            reason = f"{type(failure).__name__}: {failure}"
            journal.end(name, "failed", reason=reason[:2000], took=round(time.perf_counter() - begin, 3))
            print(f"FAILED: {reason.splitlines()[0] if reason else ''}", flush=True)
            traceback.print_exc()
            continue
        journal.end(name, "passed", took=round(time.perf_counter() - begin, 3), **kept)
        print(f"{kept.get('text', 'passed')} ({time.perf_counter() - begin:.1f} s)", flush=True)
    return good
