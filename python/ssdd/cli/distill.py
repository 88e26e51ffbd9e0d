"""Distil a set of images into a few images with target representations.

Stopped at any moment, the run goes on with --resume FOLDER alone, to the same bits as if it had never stopped.
Several processes share a run: torchrun --nproc-per-node N -m ssdd.cli distill ... (docs/processes.md).
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ssdd

from ..config import Diverged, InputError, Report, as_dict, silent
from .options import (
    FILE,
    Given,
    Share,
    add_checkpoints,
    add_device,
    add_images,
    add_overwrite,
    add_quiet,
    add_run_settings,
    add_size_of_run,
    add_teacher,
    chosen_settings,
    given_teacher,
    loaded_images,
    new_teacher,
)
from .resume import CHECKPOINTS, Run, absolute, quoted, say_how_to_go_on

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

ARGUMENTS = (
    "data",
    "size",
    "classes",
    "skip_unreadable",
    "seed",
    "teacher",
    "teacher_prefix",
    "representations",
    "checkpoint_every",
)
"""The options that a run keeps for --resume, beside its settings."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", "-o", metavar="FOLDER", type=FILE, help="Folder for the artifact, its pictures and the log."
    )
    parser.add_argument("--resume", metavar="FOLDER", type=FILE, help="Go on with the run in FOLDER, where it stopped.")
    add_images(parser)
    add_size_of_run(parser)
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Fixes the initial images and every later draw."
    )
    add_teacher(parser)
    add_checkpoints(parser)
    add_device(parser)
    parser.add_argument("--share", type=Share, help="Under torchrun, what processes share (without it: batch).")
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser)


def run(given: Given) -> None:
    from .. import report as reports

    if (given.out is None) == (given.resume is None):
        raise InputError("--out, --resume: expected one of the two")
    begun = Run.read(given.resume) if given.resume else None
    if begun:
        given.earlier(begun.arguments, *ARGUMENTS)
    on = ssdd.choose_device(given.device, ssdd.local_rank())
    settings = chosen_settings(given, begun.settings if begun else None)
    loaded = loaded_images(given.data, given)
    if settings.distill.images > len(loaded.x_train):
        raise InputError(f"images: expected at most {len(loaded.x_train)}, got {settings.distill.images}")
    if given.out:
        reports.check_directory(given.out, given.overwrite)  # by every process, before one of them makes it
    if not settings.distill.steps:
        raise InputError("steps: expected at least 1, got 0")
    # What was given is read before --overwrite may empty the folder; only training comes after.
    known = given_teacher(given, loaded, on)
    with ExitStack() as stack:
        kept_share = begun.arguments.get("share") if begun else None
        processes = stack.enter_context(ssdd.join_processes(given.share, kept_share, on))
        folder = given.resume or given.out
        if begun and _finished(folder):
            return
        if known is None and processes.size > 1:
            raise InputError(
                "teacher: several processes share a run with a teacher that is trained: "
                "ssdd teacher -o FILE.safetensors, then --teacher FILE.safetensors"
            )
        # Before there is a folder:
        ssdd.check_before_training(loaded, settings, known and known[0], known and known[1], processes, on)
        stack.enter_context(say_how_to_go_on(f"{_program(processes)} distill --resume {quoted(folder)}", folder))
        report: Report = silent
        _lock(folder, None if begun else given.overwrite, processes, stack)
        if begun and _finished(folder):  # by whoever held the lock
            return
        display = stack.enter_context(reports.Display(show=not given.quiet and processes.writes))
        if processes.writes:
            log = reports.JsonLines(folder / reports.MARK, append=begun is not None)
            report = reports.both(stack.enter_context(log), display)
            if not begun:
                names = {key: absolute(getattr(given, key)) for key in ("data", "teacher", "representations")}
                others = {key: getattr(given, key) for key in (*ARGUMENTS, "share") if key not in names}
                Run(settings, {**names, **others}).write(folder)
            report({"event": "start", "settings": as_dict(settings), "seed": given.seed})
        stop = stack.enter_context(ssdd.interruptible(display.say if processes.writes else lambda line: None))
        of_teacher, checkpoints = (
            ssdd.Checkpoints(
                folder / CHECKPOINTS,
                stage,
                every=given.checkpoint_every,
                stop=stop,
                report=report,
                writes=processes.writes,
                processes=processes.size,
                device=on,
            )
            for stage in ("teacher", "distill")
        )
        trained = folder / "teacher.safetensors"
        if known is None and begun and trained.is_file():
            teacher = ssdd.Teacher.named(str(trained), loaded.preprocessing).to(on)
            known = teacher, ssdd.represent(teacher, loaded, ssdd.cache_directory())
        network, r = known or new_teacher(loaded, settings, report, of_teacher, on)
        if network is not None and given.teacher is None and not trained.is_file():
            network.save(trained)
        make = partial(ssdd.student, settings.student, loaded.channels, loaded.size, r.dimension)
        job = ssdd.Job(loaded, r.train, make, settings.distill, given.seed, network, processes, on)
        try:
            run = ssdd.distill(job, report=report, checkpoints=checkpoints, cache=ssdd.cache_directory())
        except Diverged as error:
            if processes.writes:
                reports.keep_partial(error, folder)
            raise
        if processes.writes:
            report({"event": "result", "seed": given.seed, **run.result.metrics})
            run.result.save(folder / "distilled.safetensors")
            _draw(run, job, folder, report)
            of_teacher.clear()
            checkpoints.clear()  # last: until all is written the run can go on
            print(f"{folder / 'distilled.safetensors'}: {len(run.result)} images, loss {run.losses[-1][1]:.4g}")


def _finished(folder: Path) -> bool:
    """True if nothing of this run is left to do; says so."""
    if not (folder / "distilled.safetensors").is_file() or (folder / CHECKPOINTS).is_dir():
        return False
    print(f"{folder / 'distilled.safetensors'}: this run is finished")
    return True


def _lock(folder: Path, new: bool | None, processes: ssdd.Processes, stack: ExitStack) -> None:
    """Lock the folder for this run as long as ``stack`` lasts; if it is another's, all processes end the same way.
    ``new``: whether a new one may take an earlier run's place; None: it is there."""
    from .. import report as reports

    refused: InputError | None = None
    if processes.writes:
        try:
            stack.enter_context(reports.resume_directory(folder) if new is None else reports.own_directory(folder, new))
        except InputError as error:
            refused = error
    if processes.agree(refused is not None):
        raise refused or InputError(f"{folder}: refused to the process that writes")


def _program(processes: ssdd.Processes) -> str:
    """What starts the program: it appears in advice on how to go on."""
    return "ssdd" if processes.size == 1 else f"torchrun --nproc-per-node {processes.size} -m ssdd.cli"


def _draw(run: ssdd.Distillation, job: ssdd.Job, folder: Path, report: Report) -> None:
    """Draw the pictures of a finished run; one that cannot be drawn is reported as a warning."""
    from .. import report as reports

    pictures = {
        "contact-sheet.png": lambda file: reports.contact_sheet(run.result.images, file),
        "images-over-steps.png": lambda file: reports.images_over_steps(run.snapshots, file),
        "loss.png": lambda file: reports.loss_curves({job.seed: run.losses}, file),
        "coverage.png": lambda file: reports.coverage(job.representations, run.result.targets, file, job.data.y_train),
    }
    reports.draw_each({folder / name: draw for name, draw in pictures.items()}, report)
