"""Options that several verbs share, and what they mean together. Nothing here imports torch before a verb runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import ssdd

from ..config import (
    FINETUNE,
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

Device = Literal["cpu", "cuda"]
Share = Literal["batch", "networks"]
ClassesFrom = Literal["folders", "none"]
Recipe = Literal[tuple(FINETUNE)]  # type: ignore[valid-type]
PresetName = Literal[tuple(PRESETS)]  # type: ignore[valid-type]


def _at_least_one(text: Any) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


COUNT = Kind("a whole number from 1", _at_least_one)
FILE = Kind("a path", lambda text: Path(text).expanduser())
NAME = Kind("a name or a path", lambda text: str(Path(text).expanduser()) if str(text).startswith("~") else str(text))


class Given(SimpleNamespace):
    """The options of a verb. ``typed``: those that were given. ``settings``: the settings that were given."""

    typed: frozenset[str]
    settings: Mapping[str, Any]

    def earlier(self, arguments: Mapping[str, Any], *names: str) -> None:
        """Take those of ``names`` that were not typed from ``arguments``, with which a run began."""
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
        help="Of a folder that can be understood in two ways. folders: every subfolder "
        "is a class, images beside them are left out; none: images without classes.",
    )


def add_teacher(parser: ArgumentParser, representations: bool = True, text: str = "") -> None:
    parser.add_argument(
        "--teacher",
        "-t",
        metavar="TEACHER",
        type=NAME,
        help=(text + " " if text else "") + "FILE.safetensors written by `ssdd teacher`; FILE.pth, a ResNet in "
        "torchvision's form; or package.module:factory of yours that returns an nn.Module, also with @FILE.pth, its "
        "weights (docs/teachers.md).",
    )
    parser.add_argument(
        "--teacher-prefix",
        metavar="PREFIX",
        type=str,
        help="Of a file with several networks, what the names of the teacher's weights begin with, e.g. encoder_q.",
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
    """Add what chooses settings: a preset, a file, the published code's side, and a flag per setting."""
    parser.add_argument(
        "--preset",
        type=PresetName,
        help="Settings to start from. Without it: digits for the data digits, else small. "
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


def add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=Device, help="Where to compute. Without it: cuda if there is a GPU.")


def add_checkpoints(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint-every",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="Seconds between two checkpoints.",
    )


def add_overwrite(parser: ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="Replace what an earlier run wrote there.")


def add_quiet(parser: ArgumentParser) -> None:
    parser.add_argument("--quiet", "-q", action="store_true", help="No progress display.")


def chosen_settings(given: Given, begun: Settings | None = None) -> Settings:
    """The preset that was named or fits the data (``begun``: the settings of a run that goes on), with its changes."""
    settings = begun
    if settings is None or given.preset is not None:
        settings = preset(given.preset or ("digits" if given.data == "digits" else "small"))
    if (recipe := getattr(given, "finetune", None)) is not None:
        settings = replace(settings, finetune=FINETUNE[recipe])
    changes = read_settings_file(given.config) if given.config else {}
    changes |= given.settings
    for name in ("images", "steps"):
        if getattr(given, name, None) is not None:
            changes[f"distill.{name}"] = getattr(given, name)
    if getattr(given, "official", False):
        return official_but_for(settings, changes)
    return with_settings(settings, changes)


def official_but_for(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The published code's side of ``settings``, then what was given by name; says what that keeps from it."""
    settings = with_settings(official(settings), changes)
    kept = [f"{key} = {here} (the code: {word})" for key, (here, word) in departures(settings).items()]
    if kept:
        say(f"--official, except for what was given by name: {', '.join(kept)}")
    return settings


def say(line: str) -> None:
    """Print a line of what was found on standard error; of several processes one does."""
    if line and not ssdd.local_rank():
        print(line, file=sys.stderr)


def loaded_images(data: str, given: Given) -> ssdd.ImageSet:
    """Load images, as --size and --classes say, and print what was found."""
    loaded = ssdd.load_images(data, given.size, classes=given.classes, skip_unreadable=given.skip_unreadable)
    say(loaded.summary)
    return loaded


def loaded_target(data: str, given: Given, like: ssdd.ImageSet) -> ssdd.ImageSet:
    """Load a set beside ``like``, with its size and channels, and print what was found and what was resized."""
    loaded = ssdd.load_target(data, given.size, given.classes, given.skip_unreadable, like)
    say(loaded.summary)
    return loaded


def named_teacher(name: str, data: ssdd.ImageSet, prefix: str | None) -> ssdd.Teacher:
    """Return the teacher that was named and print what was read from a file of weights."""
    teacher = ssdd.Teacher.named(name, data.preprocessing, prefix)
    say(teacher.summary)
    return teacher


def given_teacher(
    given: Given, data: ssdd.ImageSet, device: torch.device | None = None
) -> tuple[ssdd.Teacher | None, ssdd.Representations] | None:
    """The teacher that was named, on ``device``, and its representations, from the cache if they are there; or the
    representations that were named, of no teacher. None if neither was named."""
    if given.teacher is not None and given.representations is not None:
        raise InputError("--teacher, --representations: expected one of the two")
    if given.teacher_prefix is not None and given.teacher is None:
        raise InputError("--teacher-prefix: expected it with --teacher")
    if given.representations is not None:
        return None, ssdd.read_representations(given.representations, data)
    if not given.teacher:
        return None
    teacher = named_teacher(given.teacher, data, given.teacher_prefix)
    teacher = teacher if device is None else teacher.to(device)
    return teacher, ssdd.represent(teacher, data, ssdd.cache_directory())


def new_teacher(
    data: ssdd.ImageSet,
    settings: Settings,
    report: Report,
    checkpoints: ssdd.Checkpoints,
    device: torch.device,
) -> tuple[ssdd.Teacher, ssdd.Representations]:
    """Train a teacher; return it with its representations, from the cache if they are there."""
    teacher = ssdd.train_teacher(data, settings.teacher, report, checkpoints, device)
    return teacher, ssdd.represent(teacher, data, ssdd.cache_directory())


def add_targets(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--target", metavar="NAME=DATA", type=str, action="append", help=f"{text} Repeatable.")


def named_targets(given: Given) -> dict[str, str]:
    """Name -> images of each --target."""
    pairs = [text.partition("=") for text in given.target or []]
    for name, _, path in pairs:
        if not name or not path:
            raise InputError(f"--target: expected NAME=DATA, got {name!r}")
    return {name: NAME(path) for name, _, path in pairs}


def print_table(rows: list[list[str]]) -> None:
    """Print a table, its first row the heads; as Markdown if it goes to a pipe or a file."""
    from rich.console import Console
    from rich.table import Table

    from ..report import markdown

    console = Console()
    if not console.is_terminal:  # a pipe or a log has no width of its own; there, nothing may be cut
        print(markdown(rows))
        return
    drawn = Table(*rows[0])
    for row in rows[1:]:
        drawn.add_row(*row)
    console.print(drawn)
