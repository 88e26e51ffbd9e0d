"""Options that several verbs share. Nothing here imports torch before a verb runs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import ssdd

from ..config import (
    FINETUNE,
    METHOD_NAMES,
    PRESETS,
    InputError,
    Kind,
    Report,
    Settings,
    add_settings,
    departures,
    official,
    preset,
    read_settings_file,
    with_settings,
)

if TYPE_CHECKING:
    import torch
    from jsonargparse import ArgumentParser

    from ..report import Display

Device = Literal["cpu", "cuda"]
Share = Literal["batch", "networks"]
ClassesFrom = Literal["folders", "none"]
Recipe = Literal[tuple(FINETUNE)]  # type: ignore[valid-type]
PresetName = Literal[tuple(PRESETS)]  # type: ignore[valid-type]
MethodName = Literal[METHOD_NAMES]  # type: ignore[valid-type]


def _at_least_one(text: Any) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


COUNT = Kind("a whole number from 1", _at_least_one)


def _path(text: Any) -> Path:
    """Read a path. Nothing, as an empty variable of a shell gives, is not the current folder."""
    if not str(text):
        raise ValueError
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~NAME of no user, or no home folder: a shell leaves it as it is, too
        return Path(text)


def _name(text: Any) -> str:
    return str(_path(text)) if not str(text) or str(text).startswith("~") else str(text)


FILE = Kind("a path", _path)
NAME = Kind("a name or a path", _name)


class Options(SimpleNamespace):
    """The options of a verb.

    ``words``: the command line without `ssdd`. ``typed``: the options on it. ``settings``: the settings on it.
    """

    words: Sequence[str]
    typed: frozenset[str]
    settings: Mapping[str, Any]

    def take_stored(self, arguments: Mapping[str, Any], *names: str) -> None:
        """Take those of ``names`` that were not typed from ``arguments``, the stored ones of a run that is resumed."""
        for name in names:
            if name not in self.typed:
                setattr(self, name, arguments.get(name, getattr(self, name)))


def add_artifact(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", type=FILE, help="A distilled set (.safetensors).")


def add_images(parser: ArgumentParser, default: str | None = "digits", text: str = "") -> None:
    parser.add_argument(
        "--data",
        "-d",
        metavar="DATA",
        type=NAME,
        default=default,
        help=(text + " " if text else "") + "'digits', a folder of images (also Tiny-ImageNet's, or CIFAR's python "
        "files), an .npz file (x_train: uint8 N,H,W,C), or hf:NAME of the Hugging Face hub.",
    )
    add_folder(parser)
    add_skip_unreadable(parser)


def add_skip_unreadable(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="Leave out files of a folder that cannot be decoded, and count them (without it they are an error).",
    )


def add_folder(parser: ArgumentParser) -> None:
    parser.add_argument("--size", metavar="N", type=int, help="Resize a folder's images to N x N pixels.")
    parser.add_argument(
        "--classes",
        type=ClassesFrom,
        help="For a folder that is ambiguous. folders: every subfolder is a class, and "
        "images beside them are left out. none: images without classes.",
    )


def add_teacher(parser: ArgumentParser, representations: bool = True, text: str = "") -> None:
    parser.add_argument(
        "--teacher",
        "-t",
        metavar="TEACHER",
        type=NAME,
        help=(text + " " if text else "") + "FILE.safetensors written by `ssdd teacher`; FILE.pth, a ResNet in "
        "torchvision's form; or your package.module:factory, which returns an nn.Module, also with @FILE.pth, its "
        "weights (docs/teachers.md).",
    )
    parser.add_argument(
        "--teacher-prefix",
        metavar="PREFIX",
        type=str,
        help="For a file with several networks: how the names of the teacher's weights begin, such as encoder_q.",
    )
    if representations:
        parser.add_argument(
            "--representations",
            metavar="FILE.npy",
            type=FILE,
            help="Representations you computed, one row per image "
            "(training, then test images): no teacher network is needed.",
        )


def add_run_settings(parser: ArgumentParser, official_side: bool = True) -> None:
    """Add the options that choose settings: a preset, a file, the published code's side, and one flag per setting."""
    parser.add_argument(
        "--preset",
        type=PresetName,
        help="Settings to start from. Default: digits for the data digits, else small. "
        "`ssdd settings PRESET` prints them.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=FILE,
        help="Settings from a TOML or YAML file, such as `ssdd settings` prints. A flag overrides it.",
    )
    if official_side:
        add_official(parser)
    add_settings(parser)


def add_finetune(parser: ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--finetune",
        type=Recipe,
        help=f"Recipe of fine-tuning: as published (hours on a GPU), or scaled to two cores. {text} A flag "
        "--finetune.FIELD overrides it.",
    )


def add_official(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--official",
        action="store_true",
        help="Reproduce the released code wherever it differs from the paper. An "
        "explicit flag, or a setting in --config, overrides it, and the run says so.",
    )


def add_size_of_run(parser: ArgumentParser) -> None:
    parser.add_argument("--images", "-m", metavar="N", type=int, help="Number of distilled images (distill.images).")
    parser.add_argument("--steps", metavar="N", type=int, help="Outer steps (distill.steps).")


def add_method(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--method", type=MethodName, help="What is minimised (distill.method): docs/methods.md describes each."
    )


def add_device(parser: ArgumentParser, default: str | None = None) -> None:
    text = "" if default else " Default: cuda if there is a GPU."
    parser.add_argument("--device", type=Device, default=default, help=f"Device to compute on.{text}")


def add_checkpoints(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint-every",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="Seconds between two checkpoints.",
    )


def add_overwrite(parser: ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="Replace the files of an earlier run.")


def add_licence(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--licence", metavar="TEXT", type=str, help="Licence of the images, such as cc-by-4.0: kept in the artifact."
    )


def add_tensorboard(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="Also write live curves to the folder tensorboard of the run, for `tensorboard --logdir` (optional "
        "package tensorboard).",
    )


def add_quiet(parser: ArgumentParser) -> None:
    parser.add_argument("--quiet", "-q", action="store_true", help="No progress display.")


def choose_settings(
    options: Options, stored: Settings | None = None, recipe: ssdd.PretrainConfig | None = None
) -> Settings:
    """Return the settings of a command: a preset, with the changes of --finetune, of --config and of the flags.

    The preset is --preset, or the one that fits the data. ``stored``: the settings of a run that is resumed, in its
    place. ``recipe``: the pre-training of a distilled set, in place of the preset's.
    """
    settings = stored
    if settings is None or options.preset is not None:
        settings = preset(options.preset or ("digits" if options.data == "digits" else "small"))
    if recipe is not None:
        settings = replace(settings, pretrain=recipe)
    if (recipe := getattr(options, "finetune", None)) is not None:
        settings = replace(settings, finetune=FINETUNE[recipe])
    changes = read_settings_file(options.config) if options.config else {}
    changes |= options.settings
    for name in ("images", "steps", "method"):
        if getattr(options, name, None) is not None:
            changes[f"distill.{name}"] = getattr(options, name)
    if getattr(options, "official", False):
        return choose_official(settings, changes)
    return with_settings(settings, changes)


def choose_official(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Switch ``settings`` to the published code's side, except for ``changes``, and print what differs from it."""
    settings = with_settings(official(settings), changes)
    kept = [f"{key} = {here} (the code: {word})" for key, (here, word) in departures(settings).items()]
    if kept:
        say(f"--official, except for the settings given explicitly: {', '.join(kept)}")
    return settings


def say(line: str) -> None:
    """Print a line on standard error. If several processes share a run, one of them prints it."""
    if line and not ssdd.local_rank():
        print(line, file=sys.stderr)


def read_images(data: str, options: Options) -> ssdd.ImageSet:
    """Load images with --size and --classes, and print their summary."""
    with _display(options) as display:
        loaded = ssdd.load_images(
            data, options.size, classes=options.classes, skip_unreadable=options.skip_unreadable, report=display
        )
    say(loaded.summary)
    return loaded


def read_target(data: str, options: Options, like: ssdd.ImageSet | None = None) -> ssdd.ImageSet:
    """Load one of several sets, in size and channels of ``like``. Print its summary, which says what was resized."""
    with _display(options) as display:
        loaded = ssdd.load_target(data, options.size, options.classes, options.skip_unreadable, like, display)
    say(loaded.summary)
    return loaded


def read_alike(options: Options, shape: tuple[int, ...]) -> ssdd.ImageSet:
    """Load --data in the form [C, H, W] of a distilled set's images, and print its summary. Pictures of a folder may
    have several sizes if these are square."""
    channels, height, width = shape
    size = height if height == width else options.size
    with _display(options) as display:
        loaded = ssdd.load_target(options.data, size, options.classes, options.skip_unreadable, report=display)
    loaded = ssdd.convert_images(loaded, channels, (height, width))
    say(loaded.summary)
    return loaded


def read_teacher(name: str, data: ssdd.ImageSet, prefix: str | None) -> ssdd.Teacher:
    """Return the teacher called ``name``; print its summary, and if it was trained on another size."""
    teacher = ssdd.Teacher.named(name, data.preprocessing, prefix)
    say(teacher.summary)
    say(teacher.on_size(data.size))
    return teacher


def find_teacher(
    options: Options, data: ssdd.ImageSet, device: torch.device | None = None
) -> tuple[ssdd.Teacher | None, ssdd.Representations] | None:
    """Return the teacher of --teacher, on ``device``, with its representations, from the cache if they are there.

    With --representations there is no teacher, only representations. With neither option the result is None.
    """
    if options.teacher is not None and options.representations is not None:
        raise InputError("--teacher, --representations: expected one of the two")
    if options.teacher_prefix is not None and options.teacher is None:
        raise InputError("--teacher-prefix: expected it with --teacher")
    if options.representations is not None:
        return None, ssdd.read_representations(options.representations, data)
    if not options.teacher:
        return None
    teacher = read_teacher(options.teacher, data, options.teacher_prefix)
    teacher = teacher if device is None else teacher.to(device)
    return teacher, represent(teacher, data, options)


def represent(teacher: ssdd.Teacher, data: ssdd.ImageSet, options: Options) -> ssdd.Representations:
    """Return the representations of ``data``, from the cache if they are there, and show how far it is."""
    with _display(options) as display:
        return ssdd.represent(teacher, data, ssdd.cache_directory(), display)


def _display(options: Options) -> Display:
    """Return the display of work before a run has its own. If several processes share a run, one of them shows it."""
    from ..report import Display

    return Display(show=not getattr(options, "quiet", False) and not ssdd.local_rank())


def new_teacher(
    data: ssdd.ImageSet,
    settings: Settings,
    report: Report,
    checkpoints: ssdd.Checkpoints,
    device: torch.device,
) -> tuple[ssdd.Teacher, ssdd.Representations]:
    """Train a teacher and return it with its representations, from the cache if they are there."""
    teacher = ssdd.train_teacher(data, settings.teacher, report, checkpoints, device)
    with checkpoints.without_steps():
        return teacher, ssdd.represent(teacher, data, ssdd.cache_directory(), report)


def add_targets(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--target", metavar="NAME=DATA", type=str, action="append", help=f"{text} Repeatable.")


def read_targets(options: Options) -> dict[str, str]:
    """Return name -> images of each --target."""
    pairs = [text.partition("=") for text in options.target or []]
    for name, _, path in pairs:
        if not name or not path:
            raise InputError(f"--target: expected NAME=DATA, such as Flowers={name or 'flowers.npz'}, got {name!r}")
    return {name: NAME(path) for name, _, path in pairs}


def command_line(options: Options) -> str:
    """Return the command as typed, quoted for a shell, without the directories of this machine."""
    return shlex.join(["ssdd", *(os.path.basename(a) if os.path.isabs(a) else a for a in options.words)])


def print_report(file: Path | None) -> None:
    """Say where the report is, if there is one."""
    if file is not None and file.is_file():
        print(f"Report: {file}")


def print_table(rows: list[list[str]]) -> None:
    """Print a table whose first row is the head; as Markdown if the output is a pipe or a file.

    On a terminal, columns without an entry are left out. A table that is wider than the terminal is transposed, to a
    row per measure, if that is narrower.
    """
    from rich.console import Console
    from rich.table import Table

    from ..report import markdown

    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width, so nothing may be cut
        print(markdown(rows))
        return

    def draw(rows: Sequence[Sequence[str]]) -> Table:
        drawn = Table(*rows[0])
        for row in rows[1:]:
            drawn.add_row(*row)
        return drawn

    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    by_method, by_measure = draw(list(zip(*columns, strict=True))), draw(columns)
    unlimited = console.options.update(width=10_000)
    width, transposed = (console.measure(each, options=unlimited).maximum for each in (by_method, by_measure))
    console.print(by_measure if width > console.width and transposed < width else by_method)
