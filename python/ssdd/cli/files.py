"""The verbs that exchange artifacts with other tools: ``export`` and ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import EXPORT_FORMS, DistilledSet, InputError, Preprocessing, export, read_published, read_scores
from .. import report as reports
from .options import ArtifactFile, Classes, Overwrite, Size, loaded_images


def export_command(
    artifact: ArtifactFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    form: Annotated[str, typer.Option("--form", help=f"One of {', '.join(EXPORT_FORMS)}.")] = "folder",
    labels: Annotated[
        Path | None, typer.Option("--labels", help="For ddranking: FILE.npy with class scores, one row an image.")
    ] = None,
) -> None:
    """Write a distilled set in another tool's form: image folder, Hugging Face data set, or ddranking's tensors."""
    pairs = DistilledSet.load(artifact)
    cost = export(pairs, out, form, None if labels is None else read_scores(labels))
    print(f"{out}: {len(pairs)} images, form {form}")
    if cost["largest_change"]:
        print(f"8 bits a value: {cost['clipped']:.1%} of the values clipped, the largest change "
              f"{cost['largest_change']:.3f}; the exact set lies beside the pictures")  # fmt: skip


def import_command(
    images: Annotated[Path, typer.Argument(metavar="X_SYN", help="x_syn.pt of the published code.")],
    targets: Annotated[Path, typer.Argument(metavar="Y_SYN", help="y_syn.pt: representations, or labels.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the artifact (.safetensors).")],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The real images, whose mean and standard deviation are taken.")
    ] = None,
    size: Size = None,
    classes: Classes = None,
    mean: Annotated[str | None, typer.Option(help="In place of --data: one number a channel, 0.51,0.49,0.44.")] = None,
    std: Annotated[str | None, typer.Option(help="With --mean: one number a channel.")] = None,
    support_input: Annotated[
        Literal["raw", "normalised"], typer.Option(help="How X_SYN goes into a network; the published code: raw.")
    ] = "raw",
    method: Annotated[str, typer.Option(help="Name of the row in tables.")] = "krr-st (published)",
    overwrite: Overwrite = False,
) -> None:
    """Read the published x_syn.pt and y_syn.pt (weights only: nothing in them is executed) into an artifact."""
    if (data is None) == (mean is None) or (mean is None) != (std is None):
        raise InputError("--data, --mean with --std: expected one of the two, the preprocessing of the real images")
    file, source = reports.new_file(out, overwrite), ""
    if data is not None:
        loaded = loaded_images(data, size, classes)
        preprocessing, source = loaded.preprocessing, loaded.name
    else:
        preprocessing = Preprocessing(_numbers("mean", mean or ""), _numbers("std", std or ""))
    pairs = read_published(
        images, targets, preprocessing, method=method, source=source, support_input=support_input
    )  # fmt: skip
    pairs.save(file)
    print(f"{file}: {len(pairs)} images {list(pairs.images.shape[1:])}, targets {list(pairs.targets.shape[1:])}")


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name}: expected numbers with commas between them, got {text!r}") from None
