"""Train a teacher without labels (Barlow Twins, SimCLR or BYOL: teacher.method) and save its weights.

After a stop at any moment, --resume FILE continues the training. --resume FILE --teacher.epochs MORE lengthens a
training, also a finished one, whose last checkpoint stays in FILE.training/finished (it may be deleted).
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError, Settings, with_settings
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
    represent,
    say,
)
from .resume import CHECKPOINTS, FINISHED, Run, broken_step, check_length, make_absolute, quote, say_how_to_go_on

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
            f"resume: {target} is finished and its last checkpoint was removed; to train longer, begin anew with "
            f"--out {quote(target)} --overwrite --teacher.epochs N"
        )
    stored = Run.read(folder) if options.resume else None
    if stored:
        options.take_stored(stored.arguments, "data", "size", "classes", "skip_unreadable", "checkpoint_every")
    on = ssdd.choose_device(options.device)
    settings = choose_settings(options, stored.settings if stored else None)
    if not stored:  # what is resumed was allowed to replace the file when it began
        reports.new_file(target, options.overwrite)
    loaded = read_images(options.data, options)
    say(ssdd.why_no_probe(loaded))
    longer = stored is not None and _steps(settings, loaded) > _steps(stored.settings, loaded)
    if stored and not longer and _finished(target, folder):
        return
    command = f"ssdd teacher --resume {quote(target)}"
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(reports.resume_directory(folder))
        if stored and not longer and _finished(target, folder):  # by the previous holder of the lock
            return
        if not stored:
            reports.new_file(target, options.overwrite)  # again: the previous holder of the lock may have written it
        if stored and settings.teacher.epochs != stored.settings.teacher.epochs:
            check_length(folder, "teacher", "teacher.epochs", _steps(settings, loaded))
            stored.settings = with_settings(stored.settings, {"teacher.epochs": settings.teacher.epochs})
            if _is_finished(target, folder):
                (folder / FINISHED).rename(folder / CHECKPOINTS)
            stored.write(folder)
        if not stored:
            for name in (CHECKPOINTS, FINISHED):
                shutil.rmtree(folder / name, ignore_errors=True)  # of an earlier training that is not resumed
            arguments = {"data": make_absolute(options.data), "size": options.size, "classes": options.classes}
            arguments["skip_unreadable"] = options.skip_unreadable
            Run(settings, {**arguments, "checkpoint_every": options.checkpoint_every}).write(folder)
        display = stack.enter_context(reports.Display(show=not options.quiet))
        stop = stack.enter_context(ssdd.interruptible(display.say, broken_step(command)))
        stack.enter_context(say_how_to_go_on(command, folder))
        checkpoints = ssdd.Checkpoints(
            folder / CHECKPOINTS, "teacher", every=options.checkpoint_every, stop=stop, report=display, device=on
        )
        trained = ssdd.train_teacher(loaded, settings.teacher, display, checkpoints, on)
        trained.save(target)
        checkpoints.keep_last(folder / FINISHED)
    _describe(trained, loaded, settings, options, target)


def _steps(settings: Settings, data: ssdd.ImageSet) -> int:
    return settings.teacher.steps(len(data.x_train))


def _is_finished(target: Path, folder: Path) -> bool:
    return target.is_file() and (folder / FINISHED).is_dir() and not (folder / CHECKPOINTS).is_dir()


def _finished(target: Path, folder: Path) -> bool:
    """Return True, and print a line, if nothing of this training is left to do."""
    if not _is_finished(target, folder):
        return False
    print(f"{target}: this training is finished; --teacher.epochs MORE lengthens it")
    return True


def _describe(trained: ssdd.Teacher, loaded: ssdd.ImageSet, settings: Settings, options: Options, file: Path) -> None:
    """Print what the teacher is worth: the size of its representations, and probes on them."""
    r = represent(trained, loaded, options)
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
