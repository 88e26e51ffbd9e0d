"""A training that writes one file, and that --resume FILE continues after a stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ssdd

from ..config import InputError, Settings
from .options import FILE, Options, add_checkpoints
from .resume import CHECKPOINTS, Run, broken_step, quote, say_how_to_go_on
from .resume import FILE as RUN

if TYPE_CHECKING:
    import torch
    from jsonargparse import ArgumentParser

    from ..report import Display


def add_training(parser: ArgumentParser) -> None:
    parser.add_argument("--out", "-o", metavar="FILE", type=FILE, help="File for the weights (.safetensors).")
    parser.add_argument("--resume", metavar="FILE", type=FILE, help="Continue the training that writes FILE.")
    add_checkpoints(parser)


def read_started(options: Options) -> tuple[Path, Run | None]:
    """Return the file to write and, with --resume, the stored arguments of its training."""
    if (options.out is None) == (options.resume is None):
        raise InputError("--out, --resume: expected one of the two")
    file = options.resume or options.out
    if file.suffix.lower() != ".safetensors":
        raise InputError(f"out: expected a file that ends in .safetensors, got {file.name!r}")
    if not options.resume:  # what is resumed was allowed to replace the file when it began
        from ..report import new_file

        new_file(file, options.overwrite)
    if options.resume and file.is_file() and not _folder(file).is_dir():
        raise InputError(f"resume: {file} is finished; to begin anew, give --out {quote(file)} --overwrite")
    return file, Run.read(_folder(file)) if options.resume else None


def _folder(file: Path) -> Path:
    return file.with_name(file.name + ".training")


@contextmanager
def run_training(
    verb: str, file: Path, options: Options, settings: Settings, arguments: Mapping[str, Any], device: torch.device
) -> Iterator[tuple[Display, ssdd.Checkpoints]]:
    """Lock FILE.training, store the arguments of the run there, and yield a display and checkpoints.

    The folder is removed at the end of the block, which writes ``file`` before.
    """
    from .. import report as reports

    folder = _folder(file)
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(reports.resume_directory(folder))
        if options.resume and not (folder / RUN).is_file():
            raise InputError(f"resume: {file} has just been finished by another process")
        if not options.resume:
            reports.new_file(file, options.overwrite)  # again: the previous holder of the lock may have written it
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # of an earlier training that is not resumed
            Run(settings, {**arguments, "checkpoint_every": options.checkpoint_every}).write(folder)
        display = stack.enter_context(reports.Display(show=not options.quiet))
        command = f"ssdd {verb} --resume {quote(file)}"
        stop = stack.enter_context(ssdd.interruptible(display.say, broken_step(command)))
        stack.enter_context(say_how_to_go_on(command, folder))
        every = options.checkpoint_every
        yield (
            display,
            ssdd.Checkpoints(folder / CHECKPOINTS, verb, every=every, stop=stop, report=display, device=device),
        )
        shutil.rmtree(folder)
