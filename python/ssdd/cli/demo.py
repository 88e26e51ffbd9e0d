"""Everything at once: train a teacher, distil under several seeds, and show what the result is worth.

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
    Given,
    add_images,
    add_overwrite,
    add_quiet,
    add_run_settings,
    add_size_of_run,
    add_teacher,
    add_tensorboard,
    chosen_settings,
    command_line,
    loaded_images,
    named_teacher,
    print_report,
    print_table,
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
        help="Folder for everything the demonstration writes.",
    )
    add_images(parser)
    add_size_of_run(parser)
    parser.add_argument("--seeds", metavar="N", type=int, default=5, help="Number of seeds.")
    add_teacher(parser)
    parser.add_argument(
        "--workers", metavar="N", type=COUNT, help="Worker processes (without it: one per core). Changes no number."
    )
    add_tensorboard(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser)


def run(given: Given) -> None:
    from .. import report as reports

    if given.tensorboard:
        reports.check_tensorboard()
    settings = chosen_settings(given)
    if given.teacher_prefix is not None and given.teacher is None:
        raise InputError("--teacher-prefix: expected it with --teacher")
    loaded = loaded_images(given.data, given)
    what = ssdd.Demonstration(
        loaded,
        settings,
        given.seeds,
        named_teacher(given.teacher, loaded, given.teacher_prefix) if given.teacher else None,
        ssdd.read_representations(given.representations, loaded) if given.representations else None,
    )
    with ExitStack() as stack:
        display = stack.enter_context(reports.Display(show=not given.quiet))
        report: Report = display
        if given.tensorboard:
            curves = stack.enter_context(reports.TensorBoard(given.out / reports.TENSORBOARD))
            report = reports.both(display, curves)
        count = settings.distill.images
        display.say(f"{loaded.name}: {len(loaded.x_train):,} training images, {count} to distil, {given.seeds} seeds")
        found = reports.demo(
            given.out,
            what,
            workers=given.workers,
            overwrite=given.overwrite,
            command=command_line(given),
            report=report,
        )
    print_table(found["table"])
    for sentence in reports.sentences(found["cells"]):
        print(f"- {sentence}")
    print(f"{found['seconds']['total']:.0f} s. Pictures, artifacts and log: {given.out}")
    print_report(given.out / reports.REPORT)
