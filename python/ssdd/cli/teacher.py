"""Train a teacher without labels (Barlow Twins, SimCLR or BYOL: teacher.method) and save its weights.

After a stop at any moment, --resume FILE continues the training.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError
from .options import (
    FILE,
    Options,
    add_checkpoints,
    add_device,
    add_images,
    add_overwrite,
    add_quiet,
    add_run_settings,
    choose_settings,
    read_images,
    say,
)
from .resume import CHECKPOINTS, Run, make_absolute, quote, say_how_to_go_on

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", "-o", metavar="FILE", type=FILE, help="File for the weights (.safetensors).")
    parser.add_argument("--resume", metavar="FILE", type=FILE, help="Continue the training that writes FILE.")
    add_images(parser)
    add_checkpoints(parser)
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser, official_side=False)


def run(options: Options) -> None:
    from .. import report as reports

    if (options.out is None) == (options.resume is None):
        raise InputError("--out, --resume: expected one of the two")
    target = options.resume or options.out
    ssdd.Teacher.check_file(target)
    folder = target.with_name(target.name + ".training")
    stored = Run.read(folder) if options.resume else None
    if stored:
        options.take_stored(stored.arguments, "data", "size", "classes", "skip_unreadable", "checkpoint_every")
    on = ssdd.choose_device(options.device)
    settings = choose_settings(options, stored.settings if stored else None)
    file, loaded = reports.new_file(target, options.overwrite), read_images(options.data, options)
    say(ssdd.why_no_probe(loaded))
    command = f"ssdd teacher --resume {quote(target)}"
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(reports.resume_directory(folder))
        reports.new_file(target, options.overwrite)  # again: the previous holder of the lock may have written it
        if not stored:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # of an earlier training that is not resumed
            arguments = {"data": make_absolute(options.data), "size": options.size, "classes": options.classes}
            arguments["skip_unreadable"] = options.skip_unreadable
            Run(settings, {**arguments, "checkpoint_every": options.checkpoint_every}).write(folder)
        display = stack.enter_context(reports.Display(show=not options.quiet))
        stop = stack.enter_context(ssdd.interruptible(display.say))
        stack.enter_context(say_how_to_go_on(command, folder))
        checkpoints = ssdd.Checkpoints(
            folder / CHECKPOINTS, "teacher", every=options.checkpoint_every, stop=stop, report=display, device=on
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
