"""Compute a table: every missing cell (row, seed, set) is computed and appended to OUT/cells.jsonl.

It can be stopped at any moment; the same command continues. It prints, cell by cell, how long the rest will take.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ssdd

from ..config import duration, versions
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

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("FILE",)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=FILE, help="The study, TOML: see docs/studies.md.")
    parser.add_argument(
        "--out",
        "-o",
        metavar="FOLDER",
        type=FILE,
        help="Folder for the cells and the page (default: that of FILE).",
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

    folder = options.out or options.file.parent
    plan = ssdd.read_plan(options.file)
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

    def show(event: dict[str, Any]) -> None:
        if event["event"] == "study":
            ssdd.write_page(plan, folder, _line)
        _line(event)

    work = options.work or folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(reports.JsonLines(work / reports.EVENTS, append=True))
        log({"event": "start", "command": command_line(options), "versions": versions()})
        report, cache = reports.both(log, show), ssdd.cache_directory()
        if options.tensorboard:
            report = reports.both(report, stack.enter_context(reports.TensorBoard(work / reports.TENSORBOARD)))
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
            f"{event['seconds']:.0f} s; the rest: {left}",
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
