"""A training that writes one file, and goes on with --resume FILE after it was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ssdd

from ..config import InputError, Settings
from .options import FILE, Given, add_checkpoints
from .resume import CHECKPOINTS, Run, quoted, say_how_to_go_on

if TYPE_CHECKING:
    import torch
    from jsonargparse import ArgumentParser

    from ..report import Display


def add_training(parser: ArgumentParser) -> None:
    parser.add_argument("--out", "-o", metavar="FILE", type=FILE, help="File for the weights (.safetensors).")
    parser.add_argument("--resume", metavar="FILE", type=FILE, help="Go on with the training that was to write FILE.")
    add_checkpoints(parser)


def started(given: Given) -> tuple[Path, Run | None]:
    """The file to write and, with --resume, what its training began with."""
    if (given.out is None) == (given.resume is None):
        raise InputError("--out, --resume: expected one of the two")
    file = given.resume or given.out
    if file.suffix.lower() != ".safetensors":
        raise InputError(f"out: expected a file that ends in .safetensors, got {file.name!r}")
    return file, Run.read(_folder(file)) if given.resume else None


def _folder(file: Path) -> Path:
    return file.with_name(file.name + ".training")


@contextmanager
def training(
    verb: str, file: Path, given: Given, settings: Settings, arguments: Mapping[str, Any], device: torch.device
) -> Iterator[tuple[Display, ssdd.Checkpoints]]:
    """Lock FILE.training, keep there what the run began with, and give a display and checkpoints while it lasts.

    The folder is removed at the end: whoever trains writes ``file`` before.
    """
    from .. import report as reports

    folder = _folder(file)
    reports.new_file(file, given.overwrite)
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(reports.resume_directory(folder))
        reports.new_file(file, given.overwrite)  # once more: whoever held the lock may have written it
        if not given.resume:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # of a training that is begun anew
            Run(settings, {**arguments, "checkpoint_every": given.checkpoint_every}).write(folder)
        display = stack.enter_context(reports.Display(show=not given.quiet))
        stop = stack.enter_context(ssdd.interruptible(display.say))
        stack.enter_context(say_how_to_go_on(f"ssdd {verb} --resume {quoted(file)}", folder))
        every = given.checkpoint_every
        yield (
            display,
            ssdd.Checkpoints(folder / CHECKPOINTS, verb, every=every, stop=stop, report=display, device=device),
        )
        shutil.rmtree(folder)
