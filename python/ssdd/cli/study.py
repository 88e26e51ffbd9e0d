"""``ssdd study``: rows x seeds x target sets from one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import InputError, cache_directory, read_plan, run_study
from .. import report as reports


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study, TOML: see docs/studies.md.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the cells and the page (default: that of FILE).")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The images to distil, in place of FILE's.")] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="The teacher, in place of FILE's.")] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", metavar="NAME=FILE", help="A target set, in place of FILE's.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Folder for distilled sets and networks (default: OUT/work).")
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Only write the page anew, from the cells that are there.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each. Changes no number.")] = 1,
) -> None:
    """Fill a table: every cell (row, seed, set) that is not there yet is computed and kept in OUT/cells.jsonl.

    Stop it at any moment; the same command goes on from there. Says, cell by cell, how long the rest will take.
    """
    folder = out or file.parent
    plan = read_plan(file)
    if page:
        print(reports.write_page(plan, folder, _line))
        return
    plan = replace(
        plan, data=data or plan.data, teacher=teacher or plan.teacher, targets={**plan.targets, **_targets(target)}
    )

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "study":
            reports.write_page(plan, folder, _line)
        _line(event)

    run_study(plan, folder, work=work, cache=cache_directory(), workers=workers, report=tell)
    reports.write_page(plan, folder, _line)


def _targets(given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or []]
    for name, _, path in pairs:
        if not name or not path:
            raise InputError(f"--target: expected NAME=FILE, got {name!r}")
    return {name: path for name, _, path in pairs}


def _line(event: dict[str, Any]) -> None:
    if event["event"] == "study":
        left = "not known yet" if event["left"] is None else f"about {duration(event['left'])} on one core"
        print(f"[{event['done']}/{event['of']}] {event['row']}, seed {event['seed']}, {event['set']}: "
              f"{event['seconds']:.0f} s; the rest: {left}", flush=True)  # fmt: skip
    elif event["event"] == "warning":
        typer.echo(f"warning: {event['message']}", err=True)
    elif event["event"] == "distill":
        print(f"    {event['task']}: step {event['step']} of {event['steps']}, loss {event['loss']:.4g}, untrained "
              f"{event['untrained_share']:.1%}, mean age {event['mean_age']:.1f}", flush=True)  # fmt: skip


def duration(seconds: float) -> str:
    """In words: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
