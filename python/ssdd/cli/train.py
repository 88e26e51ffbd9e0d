"""The two verbs that take long, and that go on where they were stopped: ``teacher`` and ``distill``."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import (
    WAYS,
    Cell,
    Checkpoints,
    Job,
    Processes,
    ProcessLost,
    Stopped,
    Teacher,
    cache_directory,
    check_before_training,
    chosen_device,
    evaluate_teacher,
    interruptible,
    joined,
    place,
    represent,
    student,
    train_teacher,
    why_no_probe,
)
from .. import distill as run_distill
from .. import report as reports
from ..config import Diverged, InputError, Report, as_dict, silent
from .options import (
    Changes,
    Classes,
    Data,
    Device,
    Every,
    Images,
    Official,
    Overwrite,
    PresetName,
    Quiet,
    RepresentationsFile,
    Size,
    Steps,
    TeacherName,
    TeacherPrefix,
    chosen_settings,
    chosen_teacher,
    loaded_images,
    say,
)
from .resume import CHECKPOINTS, Run, lasting


@contextmanager
def _say_how_to_go_on(command: str, folder: Path) -> Iterator[None]:
    """Complete the message of whatever ends a run that can go on; ``folder``: the run's."""
    try:
        yield
    except Stopped as error:
        raise Stopped(f"{error}. Go on with: {command}") from None
    except ProcessLost as error:
        raise ProcessLost(f"{error}. Go on from the last checkpoint with: {command}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not any((folder / CHECKPOINTS).glob("*.safetensors")):
            raise  # no room is not what ends it, or there is nothing to go on from
        raise OSError(f"{error}. The checkpoints are kept; make room, then go on with: {command}") from error


def teacher(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the weights (.safetensors).")] = None,
    data: Data = "digits",
    size: Size = None,
    classes: Classes = None,
    preset_name: PresetName = None,
    changes: Changes = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="FILE", help="Go on with the training that was to write FILE.")
    ] = None,
    every: Every = Checkpoints.EVERY,
    device: Device = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a teacher without labels (Barlow Twins, SimCLR or BYOL: teacher.method) and keep its weights.

    Stopped at any moment, the training goes on with --resume FILE.
    """
    if (out is None) == (resume is None):
        raise InputError("--out, --resume: expected one of the two")
    wanted = resume or out
    assert wanted is not None
    Teacher.check_file(wanted)
    folder = wanted.with_name(wanted.name + ".training")
    begun = Run.read(folder) if resume else None
    if begun:
        data, size, classes = begun.given(context, data=data, size=size, classes=classes)
    on = chosen_device(device)
    settings = chosen_settings(data, preset_name, changes, False, None, None, begun.settings if begun else None)
    file, loaded = reports.new_file(wanted, overwrite), loaded_images(data, size, classes)
    say(why_no_probe(loaded))
    command = f"ssdd teacher --resume {wanted}"
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(reports.resume_directory(folder))
        reports.new_file(wanted, overwrite)  # once more: whoever held the lock may have written it
        if not begun:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # of a training that is begun anew
            Run(settings, {"data": lasting(data), "size": size, "classes": classes}).write(folder)
        display = stack.enter_context(reports.Display(show=not quiet))
        stop = stack.enter_context(interruptible(display.say))
        stack.enter_context(_say_how_to_go_on(command, folder))
        checkpoints = Checkpoints(folder / CHECKPOINTS, "teacher", every=every, stop=stop, report=display, device=on)
        trained = train_teacher(loaded, settings.teacher, display, checkpoints, on)
        trained.save(file)
        shutil.rmtree(folder)
    r = represent(trained, loaded, cache_directory())
    print(f"{file}: {r.dimension} numbers an image")
    if r.test is not None:
        _print_probes(evaluate_teacher(r.train, r.test, loaded, settings))


def distill(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the artifact, its pictures and the log.")
    ] = None,
    data: Data = "digits",
    size: Size = None,
    classes: Classes = None,
    preset_name: PresetName = None,
    images: Images = None,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(help="Fixes the initial images and every later draw.")] = 0,
    teacher: TeacherName = None,
    teacher_prefix: TeacherPrefix = None,
    representations: RepresentationsFile = None,
    changes: Changes = None,
    code: Official = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="FOLDER", help="Go on with the run in FOLDER, where it stopped.")
    ] = None,
    every: Every = Checkpoints.EVERY,
    device: Device = None,
    share: Annotated[
        str | None,
        typer.Option("--share", help=f"Under torchrun, what processes share: {', '.join(WAYS)} (default: batch)."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Distil a set of images into a few images with target representations.

    Stopped at any moment, the run goes on with --resume FOLDER alone, to the same bits as if it had never stopped.
    Several processes share a run: torchrun --nproc-per-node N -m ssdd.cli distill ... (docs/processes.md).
    """
    if (out is None) == (resume is None):
        raise InputError("--out, --resume: expected one of the two")
    begun = Run.read(resume) if resume else None
    if begun:
        data, size, classes, seed, teacher, teacher_prefix, representations = begun.given(
            context, data=data, size=size, classes=classes, seed=seed, teacher=teacher, teacher_prefix=teacher_prefix,
            representations=representations,
        )  # fmt: skip
    on = chosen_device(device, place())
    settings = chosen_settings(data, preset_name, changes, code, images, steps, begun.settings if begun else None)
    loaded = loaded_images(data, size, classes)
    if settings.distill.images > len(loaded.x_train):
        raise InputError(f"images: expected at most {len(loaded.x_train)}, got {settings.distill.images}")
    if out:
        reports.check_directory(out, overwrite)  # by every process, before one of them makes it
    if not settings.distill.steps:
        raise InputError("steps: expected at least 1, got 0")
    # What was given is read before --overwrite may empty the folder; only training comes after.
    given = None
    if teacher or representations or teacher_prefix:
        given = chosen_teacher(
            teacher, representations, loaded, settings, silent, device=on, prefix=teacher_prefix
        )
    with ExitStack() as stack:
        processes = stack.enter_context(joined(share, begun.arguments.get("share") if begun else None, on))
        folder = resume or out or Path()
        if begun and _finished(folder):
            return
        if given is None and processes.size > 1:
            raise InputError("teacher: several processes share a run with a teacher that is trained: "
                             "ssdd teacher -o FILE.safetensors, then --teacher FILE.safetensors")  # fmt: skip
        # Before there is a folder:
        check_before_training(loaded, settings, given and given[0], given and given[1], processes, on)
        stack.enter_context(_say_how_to_go_on(f"{_program(processes)} distill --resume {folder}", folder))
        report: Report = silent
        _lock(folder, None if begun else overwrite, processes, stack)
        if begun and _finished(folder):  # by whoever held the lock
            return
        display = stack.enter_context(reports.Display(show=not quiet and processes.writes))
        if processes.writes:
            log = reports.JsonLines(folder / reports.MARK, append=begun is not None)
            report = reports.both(stack.enter_context(log), display)
            if not begun:
                names = {key: lasting(value) for key, value in
                         (("data", data), ("teacher", teacher), ("representations", representations))}  # fmt: skip
                others = {"size": size, "classes": classes, "teacher_prefix": teacher_prefix, "seed": seed}
                Run(settings, {**names, **others, "share": share}).write(folder)
            report({"event": "start", "settings": as_dict(settings), "seed": seed})
        stop = stack.enter_context(interruptible(display.say if processes.writes else lambda line: None))
        of_teacher, checkpoints = (
            Checkpoints(folder / CHECKPOINTS, stage, every=every, stop=stop, report=report, writes=processes.writes,
                        processes=processes.size, device=on)
            for stage in ("teacher", "distill")
        )  # fmt: skip
        trained = folder / "teacher.safetensors"
        if given is None and begun and trained.is_file():
            given = chosen_teacher(str(trained), None, loaded, settings, silent, device=on)
        network, r = given or chosen_teacher(None, None, loaded, settings, report, of_teacher, on)
        if network is not None and teacher is None and not trained.is_file():
            network.save(trained)
        make = partial(student, settings.student, loaded.channels, loaded.size, r.dimension)
        job = Job(loaded, r.train, make, settings.distill, seed, network, processes, on)
        try:
            run = run_distill(job, report=report, checkpoints=checkpoints, cache=cache_directory())
        except Diverged as error:
            if processes.writes:
                reports.keep_partial(error, folder)
            raise
        if processes.writes:
            report({"event": "result", "seed": seed, **run.result.metrics})
            run.result.save(folder / "distilled.safetensors")
            reports.draw_each({
                folder / "contact-sheet.png": lambda file: reports.contact_sheet(run.result.images, file),
                folder / "images-over-steps.png": lambda file: reports.images_over_steps(run.snapshots, file),
                folder / "loss.png": lambda file: reports.loss_curves({seed: run.losses}, file),
                folder / "coverage.png":
                    lambda file: reports.coverage(r.train, run.result.targets, file, loaded.y_train),
            }, report)  # fmt: skip
            of_teacher.clear()
            checkpoints.clear()  # last: until all is written the run can go on
            print(f"{folder / 'distilled.safetensors'}: {len(run.result)} images, loss {run.losses[-1][1]:.4g}")


def _finished(folder: Path) -> bool:
    """Whether nothing of this run is left to do; says so."""
    if not (folder / "distilled.safetensors").is_file() or (folder / CHECKPOINTS).is_dir():
        return False
    print(f"{folder / 'distilled.safetensors'}: this run is finished")
    return True


def _lock(folder: Path, new: bool | None, processes: Processes, stack: ExitStack) -> None:
    """The folder is this run's as long as ``stack`` lasts; where it is another's, all processes end the same way.
    ``new``: whether a new one may take an earlier run's place; None: it is there."""
    refused: InputError | None = None
    if processes.writes:
        try:
            stack.enter_context(reports.resume_directory(folder) if new is None else reports.own_directory(folder, new))
        except InputError as error:
            refused = error
    if processes.agree(refused is not None):
        raise refused or InputError(f"{folder}: refused to the process that writes")


def _program(processes: Processes) -> str:
    """What starts the program: it appears in advice on how to go on."""
    return "ssdd" if processes.size == 1 else f"torchrun --nproc-per-node {processes.size} -m ssdd.cli"


def _print_probes(cell: Cell) -> None:
    for key, accuracy in cell.probes.items():
        print(f"probe, {reports.labels_a_class(key.split('/')[1])}: {accuracy:.1f}%")
