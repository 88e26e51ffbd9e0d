"""Run everything: train a teacher, distil under several seeds, and measure the results.

Writes the artifacts, pictures, results.md, results.json and log.jsonl to the folder --out, and prints the table.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError, Report
from .options import (
    COUNT,
    FILE,
    Options,
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

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        "-o",
        metavar="FOLDER",
        type=FILE,
        default=Path("runs/demo"),
        help="Folder for all files of the demonstration.",
    )
    add_images(parser)
    add_size_of_run(parser)
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="Number of seeds.")
    add_teacher(parser)
    parser.add_argument(
        "--workers", metavar="N", type=COUNT, help="Worker processes (default: one per core). It changes no result."
    )
    add_tensorboard(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser)


def run(options: Options) -> None:
    from .. import report as reports

    if options.tensorboard:
        reports.check_tensorboard()
    settings = choose_settings(options)
    if options.teacher_prefix is not None and options.teacher is None:
        raise InputError("--teacher-prefix: expected it with --teacher")
    loaded = read_images(options.data, options)
    what = ssdd.Demonstration(
        loaded,
        settings,
        options.seeds,
        read_teacher(options.teacher, loaded, options.teacher_prefix) if options.teacher else None,
        ssdd.read_representations(options.representations, loaded) if options.representations else None,
    )
    with ExitStack() as stack:
        display = stack.enter_context(reports.Display(show=not options.quiet))
        report: Report = display
        if options.tensorboard:
            curves = stack.enter_context(reports.TensorBoard(options.out / reports.TENSORBOARD))
            report = reports.both(display, curves)
        count = settings.distill.images
        display.say(f"{loaded.name}: {len(loaded.x_train):,} training images, {count} to distil, {options.seeds} seeds")
        results = reports.demo(
            options.out,
            what,
            workers=options.workers,
            overwrite=options.overwrite,
            command=command_line(options),
            report=report,
        )
    print_table(results["table"])
    for sentence in reports.sentences(results["cells"]):
        print(f"- {sentence}")
    print(f"{results['seconds']['total']:.0f} s. Pictures, artifacts and log: {options.out}")
    print_report(options.out / reports.REPORT)
