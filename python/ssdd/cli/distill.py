"""Distil a set of images into a few images with targets: a teacher's representations, or what --method learns.

After a stop at any moment, --resume FOLDER alone continues the run, to the same bits as if it had never stopped.
--resume FOLDER --steps MORE lengthens a run, also a finished one; its learning rate follows the new length from there.
Several processes can share a run: torchrun --nproc-per-node N -m ssdd.cli distill ... (docs/processes.md).
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ssdd

from ..config import Diverged, InputError, Report, Settings, as_dict, silent, versions, with_settings
from .options import (
    FILE,
    Options,
    Share,
    add_checkpoints,
    add_device,
    add_images,
    add_licence,
    add_method,
    add_overwrite,
    add_quiet,
    add_run_settings,
    add_size_of_run,
    add_teacher,
    add_tensorboard,
    choose_settings,
    command_line,
    find_teacher,
    new_teacher,
    print_report,
    read_images,
)
from .resume import CHECKPOINTS, FINISHED, Run, broken_step, check_length, make_absolute, quote, say_how_to_go_on

if TYPE_CHECKING:
    import torch
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
    "licence",
)
"""The options that a run stores for --resume, besides its settings."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", "-o", metavar="FOLDER", type=FILE, help="Folder for the artifact, its pictures and the log."
    )
    parser.add_argument(
        "--resume", metavar="FOLDER", type=FILE, help="Continue the run in FOLDER from its last checkpoint."
    )
    add_images(parser)
    add_method(parser)
    add_size_of_run(parser)
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Seed of the initial images and of every later draw."
    )
    add_teacher(parser)
    add_checkpoints(parser)
    add_device(parser)
    parser.add_argument("--share", type=Share, help="Under torchrun: what the processes share (default: batch).")
    add_licence(parser)
    add_tensorboard(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser)


def run(options: Options) -> None:
    from .. import report as reports

    if (options.out is None) == (options.resume is None):
        raise InputError("--out, --resume: expected one of the two")
    if options.tensorboard:
        reports.check_tensorboard()
    stored = Run.read(options.resume) if options.resume else None
    if stored:
        options.take_stored(stored.arguments, *ARGUMENTS)
    on = ssdd.choose_device(options.device, ssdd.local_rank())
    settings = choose_settings(options, stored.settings if stored else None)
    if options.out:
        reports.check_directory(options.out, options.overwrite)  # in every process, before one of them creates it
    loaded = read_images(options.data, options)
    _check_counts(settings, loaded)
    # Files of the user are read before --overwrite may empty the folder. Only training comes afterwards.
    known = _known(options, loaded, settings, on)
    with ExitStack() as stack:
        kept_share = stored.arguments.get("share") if stored else None
        processes = stack.enter_context(ssdd.join_processes(options.share, kept_share, on))
        folder = options.resume or options.out
        longer = stored is not None and settings.distill.steps > stored.settings.distill.steps
        if stored and not longer and _finished(folder):
            return
        if known is None and processes.size > 1:
            raise InputError(
                "teacher: expected a trained teacher for several processes, got none; train it first: "
                "ssdd teacher -o FILE.safetensors, then give --teacher FILE.safetensors"
            )
        # These checks come before the folder is created.
        ssdd.check_before_training(loaded, settings, known and known[0], known and known[1], processes, on)
        command = f"{_program(processes)} distill --resume {quote(folder)}"
        stack.enter_context(say_how_to_go_on(command, folder))
        report: Report = silent
        _lock(folder, None if stored else options.overwrite, processes, stack)
        if stored and not longer and _finished(folder):  # by the previous holder of the lock
            return
        if stored and processes.writes:
            _change_length(folder, stored, settings, len(loaded.x_train))
        processes.wait()  # the other processes read what was moved
        display = stack.enter_context(reports.Display(show=not options.quiet and processes.writes))
        if processes.writes:
            report = _open_log(options, folder, settings, display, stack, new=stored is None)
        say = display.say if processes.writes else lambda line: None
        stop = stack.enter_context(ssdd.interruptible(say, broken_step(command) if processes.size == 1 else None))
        of_teacher, checkpoints = (
            ssdd.Checkpoints(
                folder / CHECKPOINTS,
                stage,
                every=options.checkpoint_every,
                stop=stop,
                report=report,
                writes=processes.writes,
                processes=processes.size,
                device=on,
            )
            for stage in ("teacher", "distill")
        )
        trained = folder / "teacher.safetensors"
        if known is None and stored and trained.is_file():
            teacher = ssdd.Teacher.named(str(trained), loaded.preprocessing).to(on)
            with of_teacher.without_steps():
                known = teacher, ssdd.represent(teacher, loaded, ssdd.cache_directory(), report)
        network, r = known or new_teacher(loaded, settings, report, of_teacher, on)
        if network is not None and options.teacher is None and not trained.is_file():
            network.save(trained)
        make = partial(_student, settings, loaded, r)
        job = ssdd.Job(loaded, r.train if r else None, make, settings.distill, options.seed, network, processes, on)
        try:
            run = ssdd.distill(job, report=report, checkpoints=checkpoints, cache=ssdd.cache_directory())
        except Diverged as error:
            if processes.writes:
                reports.keep_partial(error, folder)
            raise
        if processes.writes:
            run.result.recipe, run.result.licence = as_dict(settings.pretrain), options.licence or ""
            _write_result(run, job, folder, report)
            of_teacher.clear()
            # Last: the run can be resumed until everything is written.
            checkpoints.keep_last(folder / FINISHED)
            print(f"{folder / 'distilled.safetensors'}: {len(run.result)} images, loss {run.losses[-1][1]:.4g}")
            print_report(reports.try_report([folder], display))


def _check_counts(settings: Settings, loaded: ssdd.ImageSet) -> None:
    if not settings.distill.budget and settings.distill.images > len(loaded.x_train):
        raise InputError(
            f"images: expected at most {len(loaded.x_train)}, the training images of {loaded.name}, got "
            f"{settings.distill.images}"
        )
    if not settings.distill.steps:
        raise InputError("steps: expected at least 1, got 0")


def _known(
    options: Options, data: ssdd.ImageSet, settings: Settings, on: torch.device
) -> tuple[ssdd.Teacher | None, ssdd.Representations | None] | None:
    """Return the teacher of the options; (None, None) if none is needed, or None if one is to be trained."""
    known = find_teacher(options, data, on)
    return (None, None) if known is None and not ssdd.needs_teacher(settings.distill) else known


def _student(settings: Settings, data: ssdd.ImageSet, known: ssdd.Representations | None) -> ssdd.Network:
    """Return the network to distil for, with new random weights."""
    outputs = ssdd.target_size(settings.distill, data, known.dimension if known else None)
    return ssdd.student(settings.student, data.channels, data.size, outputs)


def _open_log(
    options: Options, folder: Path, settings: Settings, display: Report, stack: ExitStack, *, new: bool
) -> Report:
    """Return what the run reports to, as long as ``stack`` lasts. A new run keeps its arguments for --resume first."""
    from .. import report as reports

    log = stack.enter_context(reports.JsonLines(folder / reports.MARK, append=not new))
    report = reports.both(log, display)
    if options.tensorboard:
        report = reports.both(report, stack.enter_context(reports.TensorBoard(folder / reports.TENSORBOARD)))
    if new:
        names = {key: make_absolute(getattr(options, key)) for key in ("data", "teacher", "representations")}
        others = {key: getattr(options, key) for key in (*ARGUMENTS, "share") if key not in names}
        Run(settings, {**names, **others}).write(folder)
    start = {"settings": as_dict(settings), "seed": options.seed, "versions": versions()}
    report({"event": "start", "command": command_line(options), **start})
    return report


def _change_length(folder: Path, stored: Run, settings: Settings, images: int) -> None:
    """Prepare a run for other ``distill.steps`` or ``teacher.epochs`` than it was begun with.

    A finished one goes on from its last checkpoint.
    """
    lengths = {"distill.steps": settings.distill.steps, "teacher.epochs": settings.teacher.epochs}
    changed = with_settings(stored.settings, lengths)
    if changed == stored.settings:
        return
    check_length(folder, "distill", "distill.steps", settings.distill.steps)
    check_length(folder, "teacher", "teacher.epochs", settings.teacher.steps(images))
    done = (folder / "distilled.safetensors").is_file() and not (folder / CHECKPOINTS).is_dir()
    if done and not (folder / FINISHED).is_dir():
        raise InputError(f"steps: {folder} is finished and its last checkpoint was not kept; begin a new run")
    if done:
        (folder / FINISHED).rename(folder / CHECKPOINTS)
    stored.settings = changed
    stored.write(folder)


def _finished(folder: Path) -> bool:
    """Return True, and print a line, if nothing of this run is left to do."""
    if not (folder / "distilled.safetensors").is_file() or (folder / CHECKPOINTS).is_dir():
        return False
    print(f"{folder / 'distilled.safetensors'}: this run is finished")
    return True


def _lock(folder: Path, new: bool | None, processes: ssdd.Processes, stack: ExitStack) -> None:
    """Lock the folder of this run until ``stack`` closes. If another process holds it, all processes raise.

    ``new``: True if the run may replace an earlier one, False if not, None to continue the run in the folder.
    """
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
    """Return the words that start the program, for advice on how to continue."""
    return "ssdd" if processes.size == 1 else f"torchrun --nproc-per-node {processes.size} -m ssdd.cli"


def _write_result(run: ssdd.Distillation, job: ssdd.Job, folder: Path, report: Report) -> None:
    """Write the distilled set, its card and its pictures."""
    report({"event": "result", "seed": job.seed, **run.result.metrics})
    ssdd.write_card(run.result, run.result.save(folder / "distilled.safetensors"))
    _draw(run, job, folder, report)


def _draw(run: ssdd.Distillation, job: ssdd.Job, folder: Path, report: Report) -> None:
    """Draw the pictures of a finished run. A picture that cannot be drawn is reported as a warning."""
    from .. import report as reports

    pictures = {
        "contact-sheet.png": lambda file: reports.contact_sheet(run.result.images, file),
        "images-over-steps.png": lambda file: reports.images_over_steps(run.snapshots, file),
        "loss.png": lambda file: reports.loss_curves({job.seed: run.losses}, file),
    }
    known = job.representations
    if known is not None and run.result.target_kind == "representation":
        pictures["coverage.png"] = lambda file: reports.coverage(known, run.result.targets, file, job.data.y_train)
    reports.draw_each({folder / name: draw for name, draw in pictures.items()}, report)
    if known is not None:
        artifact = folder / "distilled.safetensors"
        images, labels = job.data.x_train, job.data.y_train
        reports.keep_material(artifact, run.result, known, images, labels, run.snapshots, report)
