"""Train a teacher without labels (Barlow Twins, SimCLR or BYOL: teacher.method) and keep its weights.

Stopped at any moment, the training goes on with --resume FILE.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError
from .options import (
    FILE,
    Given,
    add_checkpoints,
    add_device,
    add_images,
    add_overwrite,
    add_quiet,
    add_run_settings,
    chosen_settings,
    loaded_images,
    say,
)
from .resume import CHECKPOINTS, Run, absolute, quoted, say_how_to_go_on

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", "-o", metavar="FILE", type=FILE, help="File for the weights (.safetensors).")
    parser.add_argument("--resume", metavar="FILE", type=FILE, help="Go on with the training that was to write FILE.")
    add_images(parser)
    add_checkpoints(parser)
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser, official_side=False)


def run(given: Given) -> None:
    from .. import report as reports

    if (given.out is None) == (given.resume is None):
        raise InputError("--out, --resume: expected one of the two")
    wanted = given.resume or given.out
    ssdd.Teacher.check_file(wanted)
    folder = wanted.with_name(wanted.name + ".training")
    begun = Run.read(folder) if given.resume else None
    if begun:
        given.earlier(begun.arguments, "data", "size", "classes", "skip_unreadable", "checkpoint_every")
    on = ssdd.choose_device(given.device)
    settings = chosen_settings(given, begun.settings if begun else None)
    file, loaded = reports.new_file(wanted, given.overwrite), loaded_images(given.data, given)
    say(ssdd.why_no_probe(loaded))
    command = f"ssdd teacher --resume {quoted(wanted)}"
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(reports.resume_directory(folder))
        reports.new_file(wanted, given.overwrite)  # once more: whoever held the lock may have written it
        if not begun:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # of a training that is begun anew
            arguments = {"data": absolute(given.data), "size": given.size, "classes": given.classes}
            arguments["skip_unreadable"] = given.skip_unreadable
            Run(settings, {**arguments, "checkpoint_every": given.checkpoint_every}).write(folder)
        display = stack.enter_context(reports.Display(show=not given.quiet))
        stop = stack.enter_context(ssdd.interruptible(display.say))
        stack.enter_context(say_how_to_go_on(command, folder))
        checkpoints = ssdd.Checkpoints(
            folder / CHECKPOINTS, "teacher", every=given.checkpoint_every, stop=stop, report=display, device=on
        )
        trained = ssdd.train_teacher(loaded, settings.teacher, display, checkpoints, on)
        trained.save(file)
        shutil.rmtree(folder)
    r = ssdd.represent(trained, loaded, ssdd.cache_directory())
    print(f"{file}: {r.dimension} numbers per image")
    if r.test is not None:
        print_probes(ssdd.evaluate_teacher(r.train, r.test, loaded, settings))


def print_probes(cell: ssdd.Cell) -> None:
    """Print the accuracy of each probe."""
    from .. import report as reports

    for key, accuracy in cell.probes.items():
        print(f"probe, {reports.labels_per_class(key.split('/')[1])}: {accuracy:.1f}%")
