"""Run everything: train a teacher, distil under several seeds, and measure the results.

Writes the artifacts, pictures, results.md, results.json and log.jsonl to the folder --out, and prints the table. After
a stop, --resume FOLDER continues; what is finished is not computed again.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ssdd

from ..config import Event, InputError, Report, Settings
from .options import (
    COUNT,
    FILE,
    Options,
    add_device,
    add_images,
    add_overwrite,
    add_quiet,
    add_run_settings,
    add_size_of_run,
    add_teacher,
    add_tensorboard,
    choose_settings,
    command_line,
    print_report,
    print_table,
    read_images,
    read_teacher,
)
from .resume import Run, make_absolute, quote, stop_at_once

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


ARGUMENTS = (
    "data",
    "size",
    "classes",
    "skip_unreadable",
    "seeds",
    "teacher",
    "teacher_prefix",
    "representations",
    "device",
)
"""The options that a demonstration stores for --resume, besides its settings."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        "-o",
        metavar="FOLDER",
        type=FILE,
        default=Path("runs/demo"),
        help="Folder for all files of the demonstration.",
    )
    parser.add_argument("--resume", metavar="FOLDER", type=FILE, help="Continue the demonstration in FOLDER.")
    add_images(parser)
    add_size_of_run(parser)
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="Number of seeds.")
    add_teacher(parser)
    parser.add_argument(
        "--workers", metavar="N", type=COUNT, help="Worker processes (default: one per core). It changes no result."
    )
    add_device(parser, "cpu")
    add_tensorboard(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser)


def run(options: Options) -> None:
    from .. import report as reports

    if options.tensorboard:
        reports.check_tensorboard()
    stored = Run.read(options.resume, reports.DEMO) if options.resume else None
    if stored:
        if "out" in options.typed:
            raise InputError("--out, --resume: expected one of the two")
        options.out = options.resume
        options.take_stored(stored.arguments, *ARGUMENTS)
        if (options.out / "results.json").is_file():
            print(f"{options.out}: this demonstration is finished")
            return
    else:
        reports.check_directory(options.out, options.overwrite)
    settings = choose_settings(options, stored.settings if stored else None)
    on = ssdd.choose_device(options.device)
    if options.teacher_prefix is not None and options.teacher is None:
        raise InputError("--teacher-prefix: expected it with --teacher")
    loaded = read_images(options.data, options)
    what = ssdd.Demonstration(
        loaded,
        settings,
        options.seeds,
        read_teacher(options.teacher, loaded, options.teacher_prefix) if options.teacher else None,
        ssdd.read_representations(options.representations, loaded) if options.representations else None,
        on,
    )
    with ExitStack() as stack:
        display = stack.enter_context(reports.Display(show=not options.quiet))
        report: Report = display
        if options.tensorboard:
            curves = stack.enter_context(reports.TensorBoard(options.out / reports.TENSORBOARD))
            report = reports.both(display, curves)
        count = settings.distill.images
        seeds = "1 seed" if options.seeds == 1 else f"{options.seeds} seeds"
        display.say(f"{loaded.name}: {len(loaded.x_train):,} training images, {count} to distil, {seeds}")
        stack.enter_context(stop_at_once(lambda: _how_to_go_on(options.out)))
        results = reports.demo(
            options.out,
            what,
            workers=options.workers,
            overwrite=options.overwrite,
            resume=stored is not None,
            command=command_line(options),
            report=report if stored else reports.both(report, partial(_keep_arguments, options, settings)),
        )
    print_table(results["table"])
    for sentence in reports.sentences(results["cells"]):
        print(f"- {sentence}")
    print(f"{results['seconds']['total']:.0f} s. Pictures, artifacts and log: {options.out}")
    print_report(options.out / reports.REPORT)


def _keep_arguments(options: Options, settings: Settings, event: Event) -> None:
    """Keep the arguments for --resume when the demonstration begins, as its folder then exists."""
    from .. import report as reports

    if event["event"] == "start":
        arguments = {key: getattr(options, key) for key in ARGUMENTS}
        paths = {key: make_absolute(arguments[key]) for key in ("data", "teacher", "representations")}
        Run(settings, {**arguments, **paths}).write(options.out, reports.DEMO)


def _how_to_go_on(folder: Path) -> str:
    """Say how to continue a demonstration that was stopped, once it has begun."""
    from .. import report as reports

    return f"Go on with: ssdd demo --resume {quote(folder)}" if (folder / reports.DEMO).is_file() else ""
