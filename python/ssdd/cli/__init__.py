"""The command line: eleven verbs, each one call of the package."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from .. import (
    Demonstration,
    DistilledSet,
    ProcessLost,
    Stopped,
    build,
    chosen_device,
    evaluate,
    pretrain,
    read_representations,
    save_backbone,
    seeded,
    student,
    why_no_probe,
    world_size,
)
from .. import report as reports
from ..config import Diverged, InputError, PretrainConfig, with_settings
from .files import export_command, import_command
from .options import (
    ArtifactFile,
    Changes,
    Classes,
    Data,
    Device,
    Images,
    Model,
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
    named_teacher,
    say,
)
from .settings import settings_command, spelled_out
from .study import study
from .train import distill, teacher

app = typer.Typer(
    name="ssdd",
    help="Self-supervised dataset distillation: a few images, each with a representation to learn from, that a network "
    "can be pre-trained on in place of a whole unlabelled set.\n\nStart with `ssdd demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demonstration writes.")] = Path(
        "runs/demo"
    ),
    data: Data = "digits",
    size: Size = None,
    classes: Classes = None,
    preset_name: PresetName = None,
    images: Images = None,
    steps: Steps = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 5,
    teacher: TeacherName = None,
    teacher_prefix: TeacherPrefix = None,
    representations: RepresentationsFile = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (default: one a core). Changes no number.")
    ] = None,
    changes: Changes = None,
    code: Official = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Everything at once: train a teacher, distil under several seeds, and show what the result is worth.

    Writes the artifacts, pictures, results.md, results.json and log.jsonl to the folder --out, and prints the table.
    """
    settings = chosen_settings(data, preset_name, changes, code, images, steps)
    if teacher_prefix is not None and teacher is None:
        raise InputError("--teacher-prefix: expected it with --teacher")
    loaded = loaded_images(data, size, classes)
    what = Demonstration(
        loaded, settings, seeds,
        named_teacher(teacher, loaded, teacher_prefix) if teacher else None,
        read_representations(representations, loaded) if representations else None,
    )  # fmt: skip
    with reports.Display(show=not quiet) as display:
        count = settings.distill.images
        display.say(f"{loaded.name}: {len(loaded.x_train):,} training images, {count} to distil, {seeds} seeds")
        found = reports.demo(
            out, what, workers=workers, overwrite=overwrite, command=_command(), report=display
        )
    _print_table(found["table"])
    for sentence in reports.sentences(found["cells"]):
        print(f"- {sentence}")
    print(f"{found['seconds']['total']:.0f} s. Pictures, artifacts and log: {out}")


app.command()(teacher)
app.command()(distill)


@app.command("pretrain")
def pretrain_command(
    artifact: ArtifactFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the weights (.safetensors).")],
    model: Model = "resnet18",
    epochs: Annotated[int | None, typer.Option(help="Passes over the distilled set (published: 1000).")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps, where --epochs is not given.")] = 1000,
    rate: Annotated[float, typer.Option(help="SGD rate (published: 0.1).")] = 0.1,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 256,
    schedule: Annotated[Literal["constant", "cosine"], typer.Option(help="Published: constant.")] = "constant",
    seed: Annotated[int, typer.Option(help="Fixes the random start.")] = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a new network on a distilled set: what the artifact is for.

    The file holds the weights of the network without its last layer (its features), under the names of
    ssdd.build(MODEL, ...).backbone.
    """
    pairs = DistilledSet.load(artifact)
    file = reports.new_file(out, overwrite)
    channels, height, width = pairs.images.shape[1:]
    if epochs is not None:
        steps = epochs * max(1, len(pairs) // batch)
    config = PretrainConfig(steps=steps, batch=batch, rate=rate, schedule=schedule)
    network = seeded(lambda: build(model, channels, (height, width), pairs.targets.shape[1]), seed)
    network.to(chosen_device(device))
    with reports.Display(show=not quiet) as display:
        pretrain(network, pairs, config, seed=seed, report=display)
    save_backbone(network, file, pairs, config, model=model, seed=seed)
    print(f"{file}: {model}, {network.dimension} features, pre-trained {steps} steps on {len(pairs)} images")


@app.command("evaluate")
def evaluate_command(
    artifact: ArtifactFile,
    data: Data = "digits",
    size: Size = None,
    classes: Classes = None,
    preset_name: PresetName = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Network to pre-train (default: the preset's student).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of pre-trainings.")] = 1,
    teacher: TeacherName = None,
    teacher_prefix: TeacherPrefix = None,
    representations: RepresentationsFile = None,
    changes: Changes = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Pre-train on a distilled set and measure it: probes and, given --teacher or --representations, the error."""
    settings = chosen_settings(data, preset_name, changes, False, None, None)
    if model is not None:
        settings = with_settings(settings, {"student.model": model})
    pairs, loaded, on = DistilledSet.load(artifact), loaded_images(data, size, classes), chosen_device(device)
    say(why_no_probe(loaded))
    with reports.Display(show=not quiet) as display:
        test = None
        if teacher or representations or teacher_prefix:
            test = chosen_teacher(
                teacher, representations, loaded, settings, display, device=on, prefix=teacher_prefix
            )[1].test
        if test is not None and pairs.target_kind == "representation" and test.shape[1] != pairs.targets.shape[1]:
            raise InputError(
                f"teacher: the artifact's targets have {pairs.targets.shape[1]} numbers, this teacher's {test.shape[1]}"
            )
        make = partial(student, settings.student, loaded.channels, loaded.size)
        cells = [
            evaluate(given, loaded, known, make, settings, seed=s, report=display, device=on).as_dict()
            for given, known in ((pairs, test), (None, None))
            for s in range(seeds)
        ]
    _print_table(reports.table(cells))


@app.command()
def show(
    artifact: ArtifactFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write (default: beside the artifact).")
    ] = None,
    columns: Annotated[int | None, typer.Option(min=1, help="Images a row.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the images of a distilled set as one PNG."""
    pairs = DistilledSet.load(artifact)
    file = reports.new_file(out or artifact.with_suffix(".png"), overwrite)
    reports.contact_sheet(pairs.images, file, columns)
    print(f"{file}: {len(pairs)} images")


@app.command()
def info(
    artifact: Annotated[
        Path | None, typer.Argument(metavar="[ARTIFACT]", help="A distilled set (.safetensors).")
    ] = None,
) -> None:
    """Print, as JSON, what an artifact holds; without one, what is installed."""
    print(json.dumps(reports.info(artifact), indent=1))


app.command()(study)
app.command("settings")(settings_command)
app.command("export")(export_command)
app.command("import")(import_command)


def _print_table(rows: list[list[str]]) -> None:
    drawn = Table(*rows[0])
    for row in rows[1:]:
        drawn.add_row(*row)
    console = Console()
    if console.is_terminal:
        console.print(drawn)
    else:  # a pipe or a log has no width of its own; there, nothing may be cut
        print(reports.markdown(rows))


def _command() -> str:
    """The command as typed, without the directories of this machine."""
    return " ".join(["ssdd", *(os.path.basename(a) if os.path.isabs(a) else a for a in sys.argv[1:])])


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn the errors a user can cause into one message and exit status 1; leave bugs their traceback."""
    try:
        yield
    except (InputError, Diverged, ProcessLost, OSError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"error: {error}")
        raise SystemExit(1) from None
    except (KeyboardInterrupt, Stopped) as stopped:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(str(stopped) or "stopped")
        raise SystemExit(130) from None


def main() -> None:
    """The program ``ssdd``."""
    with readable_errors():
        if world_size() == 1:
            app(spelled_out(sys.argv[1:]))
            return
    # One of several processes: gloo's threads may still be letting go of what Python owns, and a thread that asks a
    # closing interpreter for its lock is ended by it, which C++ answers with abort(). All is on disk; so leave at once.
    code = 1
    try:
        with readable_errors():
            app(spelled_out(sys.argv[1:]))
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
