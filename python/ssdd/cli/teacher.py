"""Train a teacher without labels (Barlow Twins, SimCLR or BYOL: teacher.method) and save its weights.

After a stop at any moment, --resume FILE continues the training; with --teacher.epochs N to another length.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError, with_settings
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


COLLAPSED = 1e-4
"""Below this share of their mean square, the variance of the representations counts as none."""


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
    if options.resume and target.is_file() and not folder.is_dir():
        raise InputError(
            f"resume: {target} is finished and its checkpoints are removed; to train longer, begin anew with "
            f"--out {quote(target)} --overwrite --teacher.epochs N"
        )
    stored = Run.read(folder) if options.resume else None
    if stored:
        options.take_stored(stored.arguments, "data", "size", "classes", "skip_unreadable", "checkpoint_every")
    on = ssdd.choose_device(options.device)
    settings = choose_settings(options, stored.settings if stored else None)
    file = reports.new_file(target, options.overwrite)
    loaded = read_images(options.data, options)
    say(ssdd.why_no_probe(loaded))
    command = f"ssdd teacher --resume {quote(target)}"
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(reports.resume_directory(folder))
        reports.new_file(target, options.overwrite)  # again: the previous holder of the lock may have written it
        if stored and settings.teacher.epochs != stored.settings.teacher.epochs:
            stored.settings = with_settings(stored.settings, {"teacher.epochs": settings.teacher.epochs})
            stored.write(folder)
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
    few = r.train[:1024]
    if float(few.var(0).sum()) < COLLAPSED * float(few.square().sum(1).mean()):
        say(
            "warning: all images have nearly the same representation; train longer (--teacher.epochs), or change "
            "--teacher.lr or --teacher.method"
        )
    if r.test is not None:
        cell = ssdd.evaluate_teacher(r.train, r.test, loaded, settings)
        print_probes(cell)
        say(_worth_little(cell, loaded))


def print_probes(cell: ssdd.Cell) -> None:
    """Print the accuracy of each probe."""
    from .. import report as reports

    for key, accuracy in cell.probes.items():
        print(f"probe, {reports.labels_per_class(key.split('/')[1])}: {accuracy:.1f}%")


def _worth_little(cell: ssdd.Cell, data: ssdd.ImageSet) -> str:
    """Return a warning if the best probe is near what always answering the largest class gives; "" if not."""
    if not cell.probes or data.y_test is None:
        return ""
    guess = 100 * float(data.y_test.bincount().max()) / len(data.y_test)
    if max(cell.probes.values()) >= min(guess + 5, 99):
        return ""
    return (
        f"warning: always answering the largest class gives {guess:.1f}%, so this teacher is worth little; train "
        f"longer (--teacher.epochs), or on more images"
    )
