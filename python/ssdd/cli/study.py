"""Compute a table: every missing cell (row, seed, set) is computed and appended to OUT/cells.jsonl.

It can be stopped at any moment; the same command continues. It prints, cell by cell, how long the rest will take.
--dry-run checks every row and estimates the cost, without training. --list names the studies of the package.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ssdd

from ..config import InputError, duration, versions
from .options import (
    COUNT,
    FILE,
    NAME,
    Options,
    add_device,
    add_folder,
    add_targets,
    add_teacher,
    add_tensorboard,
    command_line,
    print_report,
    read_targets,
)
from .resume import stop_at_once

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("[FILE]",)
SPEED = 30.0
"""Multiply-adds per second, in billions: what one CPU core with AVX-512 makes of the small networks."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        type=FILE,
        nargs="?",
        help="The study, TOML: see docs/studies.md; or a study of the package, such as published/cifar100.toml.",
    )
    parser.add_argument("--list", action="store_true", help="List the studies of the package.")
    parser.add_argument(
        "--dry-run", action="store_true", help="Check every row and estimate its cost; nothing is trained."
    )
    parser.add_argument(
        "--speed",
        metavar="N",
        type=float,
        default=SPEED,
        help="For --dry-run: billions of multiply-adds per second that your machine makes.",
    )
    parser.add_argument(
        "--out",
        "-o",
        metavar="FOLDER",
        type=FILE,
        help="Folder for the cells and the page (default: that of FILE; for a study of the package, a folder of its "
        "name).",
    )
    parser.add_argument("--data", "-d", metavar="DATA", type=NAME, help="The images to distil, in place of FILE's.")
    add_folder(parser)
    add_teacher(parser, representations=False, text="In place of FILE's:")
    add_targets(parser, "A target set, in place of FILE's.")
    parser.add_argument(
        "--work", metavar="FOLDER", type=FILE, help="Folder for distilled sets and networks (default: OUT/work)."
    )
    add_tensorboard(parser)
    add_device(parser)
    parser.add_argument("--page", action="store_true", help="Only write the page again, from the existing cells.")
    parser.add_argument(
        "--workers", metavar="N", type=COUNT, default=1, help="Processes of one thread each. They change no result."
    )


def run(options: Options) -> None:
    from .. import report as reports

    if options.list:
        for name, file in ssdd.shipped_studies().items():
            print(f"{name:36} {ssdd.read_plan(file).title}")
        return
    if options.file is None:
        raise InputError("file: expected a study, or --list for those of the package")
    file = ssdd.find_study(options.file)
    shipped = file in ssdd.shipped_studies().values() and not options.file.exists()
    folder = options.out or (Path("-".join(options.file.with_suffix("").parts)) if shipped else file.parent)
    plan = ssdd.read_plan(file, folder="." if shipped else None)
    if options.page:
        print(ssdd.write_page(plan, folder, _line))
        return
    if options.tensorboard:
        reports.check_tensorboard()
    changes = {
        key: value
        for key in ("data", "size", "classes", "teacher", "teacher_prefix")
        if (value := getattr(options, key)) is not None
    }
    on = ssdd.choose_device(options.device)
    plan = replace(plan, **changes, targets={**plan.targets, **read_targets(options)})
    if options.dry_run:
        _print_estimate(plan, ssdd.estimate_study(plan, folder), options.speed)
        return
    named = [str(name) for name in (plan.data, *plan.targets.values()) if name is not None]
    if plan.layout and not all(":" in name or Path(name).exists() for name in named):
        print(f"The files of this study:\n{plan.layout.strip()}", file=sys.stderr)

    def show(event: dict[str, Any]) -> None:
        if event["event"] == "study":
            ssdd.write_page(plan, folder, _line)
        _line(event)

    work = options.work or folder / "work"
    for place, argument in ((folder, "out"), (work, "work")):
        reports.check_writable(place, argument)
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(reports.JsonLines(work / reports.EVENTS, append=True))
        log({"event": "start", "command": command_line(options), "versions": versions()})
        report, cache = reports.both(log, show), ssdd.cache_directory()
        if options.tensorboard:
            report = reports.both(report, stack.enter_context(reports.TensorBoard(work / reports.TENSORBOARD)))
        stack.enter_context(stop_at_once(lambda: "The same command goes on with the missing cells"))
        study = ssdd.run_study(plan, folder, work=work, cache=cache, workers=options.workers, report=report, device=on)
        reports.keep_study_material(plan, study, report)
    ssdd.write_page(plan, folder, _line)
    print_report(reports.try_report([folder], _line, work=work))


def _line(event: dict[str, Any]) -> None:
    if event["event"] == "loaded":
        print(event["summary"], file=sys.stderr)
    elif event["event"] == "study":
        left = "not known yet" if event["left"] is None else f"about {duration(event['left'])} on one core"
        print(
            f"[{event['done']}/{event['of']}] {event['row']}, seed {event['seed']}, {event['set']}: "
            f"{event['seconds']:.0f} s" + (f"; the rest: {left}" if event["done"] < event["of"] else ""),
            flush=True,
        )
    elif event["event"] == "warning":
        print(f"warning: {event['message']}", file=sys.stderr)
    elif event["event"] == "distill":
        print(
            f"    {event['task']}: step {event['step']} of {event['steps']}, loss {event['loss']:.4g}, untrained "
            f"{event['untrained_share']:.1%}, mean age {event['mean_age']:.1f}",
            flush=True,
        )


def _print_estimate(plan: ssdd.Plan, estimate: ssdd.StudyEstimate, speed: float) -> None:
    """Print what a study takes, row by row."""
    if not speed > 0:
        raise InputError(f"--speed: expected more than 0, got {speed}")
    head = ("row", "from", "weights", "pairs", "kB", "steps", "seeds", "cells", "hours")
    lines = [head]
    for r in estimate.rows:
        whole, hours = r.row.seeds * len(plan.sets), r.cost / (speed * 1e9) / 3600
        lines.append(
            (
                r.row.name,
                r.row.origin.source,
                f"{r.parameters:,}" if r.parameters < 1e6 else f"{r.parameters / 1e6:,.2f} M",
                f"{r.images:,}",
                f"{r.bytes / 1000:,.0f}",
                f"{r.steps:,}",
                str(r.row.seeds),
                f"{r.missing}/{whole}",
                f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    print(plan.title)
    for line in lines:
        names = [text.ljust(w) for text, w in zip(line[:2], widths[:2], strict=True)]
        numbers = [text.rjust(w) for text, w in zip(line[2:], widths[2:], strict=True)]
        print("  ".join(names) + "  " + " ".join(numbers))  # 80 columns are enough for the studies of the package
    left = sum(r.missing for r in estimate.rows)
    hours = estimate.cost / (speed * 1e9) / 3600
    print(
        f"{left} of {estimate.cells} cells to compute: about {estimate.cost:.2g} multiply-adds, {hours:,.1f} hours at "
        f"{speed:g} billion per second (--speed)"
    )
    for note in estimate.notes:
        print(f"note: {note}")
    for what in estimate.missing:
        print(f"missing: {what}")
    if estimate.missing and plan.layout:
        print(f"The files of this study:\n{plan.layout.strip()}")
