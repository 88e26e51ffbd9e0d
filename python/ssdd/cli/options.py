"""Options that several verbs share, and what they mean together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import (
    DEVICES,
    Checkpoints,
    ImageSet,
    Representations,
    Teacher,
    cache_directory,
    load_images,
    local_rank,
    read_representations,
    represent,
    train_teacher,
)
from ..config import PRESETS, InputError, Report, Settings, departures, official, preset, with_settings

Data = Annotated[
    str,
    typer.Option("--data", "-d", help="'digits', a folder of images (also Tiny-ImageNet's, or CIFAR's python files), "
                 "an .npz file (x_train: uint8 N,H,W,C), or hf:NAME of the Hugging Face hub."),
]  # fmt: skip
Size = Annotated[int | None, typer.Option(help="Resize a folder's images to SIZE x SIZE pixels.")]
Classes = Annotated[
    str | None,
    typer.Option("--classes", metavar="folders|none", help="Of a folder that can be understood in two ways. folders: "
                 "every subfolder is a class, images beside them are left out; none: images without classes."),
]  # fmt: skip
PresetName = Annotated[
    str | None,
    typer.Option("--preset", help=f"Settings: {', '.join(PRESETS)}. Default: digits for digits, else small."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="STAGE.FIELD=VALUE",
        help="Change a setting, e.g. distill.lr=0.03. Repeatable. "
        "Each is a flag too, --distill.lr 0.03: `ssdd settings PRESET` prints all.",
    ),
]
Official = Annotated[
    bool,
    typer.Option("--official", help="Turn every departure between paper and published code to the code's side, but for "
                 "those that a flag (or --set) names: the flag wins, and the run says so."),
]  # fmt: skip
TeacherName = Annotated[
    str | None,
    typer.Option("--teacher", "-t", help="FILE.safetensors written by `ssdd teacher`; FILE.pth, a ResNet in "
                 "torchvision's form; or package.module:factory of yours that returns an nn.Module, also with "
                 "@FILE.pth, its weights (docs/teachers.md)."),
]  # fmt: skip
TeacherPrefix = Annotated[
    str | None,
    typer.Option("--teacher-prefix", metavar="PREFIX", help="Of a file with several networks, what the names of the "
                 "teacher's weights begin with, e.g. encoder_q."),
]  # fmt: skip
RepresentationsFile = Annotated[
    Path | None,
    typer.Option("--representations", help="FILE.npy with representations you computed, one row an image (training, "
                 "then test images): no teacher network is needed."),
]  # fmt: skip
Images = Annotated[int | None, typer.Option("--images", "-m", help="Number of distilled images.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Outer steps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Model = Annotated[str, typer.Option("--model", help="resnet18, resnet10, or convnet-W-W-... (one width a block).")]
Every = Annotated[float, typer.Option("--checkpoint-every", help="Seconds between two checkpoints.")]
Device = Annotated[
    str | None, typer.Option("--device", help=f"{', '.join(DEVICES)} (default: cuda where there is one).")
]  # fmt: skip
ArtifactFile = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A distilled set (.safetensors).")]


def chosen_settings(
    data: str, name: str | None, changes: list[str] | None, code: bool, images: int | None, steps: int | None,
    begun: Settings | None = None,
) -> Settings:  # fmt: skip
    """The preset that was named or fits the data (``begun``: the settings of a run that goes on), with its changes."""
    if begun is not None and name is None:
        settings = begun
    else:
        settings = preset(name or ("digits" if data == "digits" else "small"))
    pairs = dict(change.partition("=")[::2] for change in changes or [])
    if images is not None:
        pairs["distill.images"] = str(images)
    if steps is not None:
        pairs["distill.steps"] = str(steps)
    return official_but_for(settings, pairs) if code else with_settings(settings, pairs)


def official_but_for(settings: Settings, changes: Mapping[str, str]) -> Settings:
    """The published code's side of ``settings``, then what was asked for by name; says what that keeps from it."""
    settings = with_settings(official(settings), changes)
    kept = [f"{key} = {here} (the code: {word})" for key, (here, word) in departures(settings).items()]
    if kept and not local_rank():  # of several processes one says it
        typer.echo(f"--official but for what was asked for by name: {', '.join(kept)}", err=True)
    return settings


def say(line: str) -> None:
    """Print a line of what was found on standard error; of several processes one does."""
    if line and not local_rank():
        typer.echo(line, err=True)


def loaded_images(data: str, size: int | None, classes: str | None) -> ImageSet:
    """Load the images that were asked for and say what was found."""
    loaded = load_images(data, size, classes=classes)
    say(loaded.summary)
    return loaded


def named_teacher(name: str, data: ImageSet, prefix: str | None) -> Teacher:
    """Return the teacher that was asked for and say what was taken from a file of weights."""
    teacher = Teacher.named(name, data.preprocessing, prefix)
    say(teacher.summary)
    return teacher


def chosen_teacher(
    name: str | None, file: str | Path | None, data: ImageSet, settings: Settings, report: Report,
    checkpoints: Checkpoints | None = None, device: torch.device | None = None, prefix: str | None = None,
) -> tuple[Teacher | None, Representations]:  # fmt: skip
    """The teacher that was asked for (none was: a new one), on ``device``, and its representations, from the cache
    where they are."""
    if name is not None and file is not None:
        raise InputError("--teacher, --representations: expected one of the two")
    if prefix is not None and name is None:
        raise InputError("--teacher-prefix: expected it with --teacher")
    if file is not None:
        return None, read_representations(file, data)
    if name:
        teacher = named_teacher(name, data, prefix).to(device or torch.device("cpu"))
    else:
        teacher = train_teacher(data, settings.teacher, report, checkpoints, device or torch.device("cpu"))
    return teacher, represent(teacher, data, cache_directory())
