"""Read the published x_syn.pt and y_syn.pt (weights only: nothing in them is executed) into an artifact.

With --labels, read a labelled set that another method made (DSA, MTT, ...): images [S, C, H, W], and labels, int [S] or
shares of classes [S, classes].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import ssdd

from ..config import InputError
from .options import FILE, Options, add_images, add_licence, add_overwrite, read_images

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("X_SYN", "Y_SYN")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("images", metavar="X_SYN", type=FILE, help="x_syn.pt of the published code, or images.pt.")
    parser.add_argument(
        "targets", metavar="Y_SYN", type=FILE, help="y_syn.pt: representations, or labels; or labels.pt."
    )
    parser.add_argument(
        "--out", "-o", metavar="FILE", type=FILE, required=True, help="File for the artifact (.safetensors)."
    )
    add_images(parser, None, "The real images, whose mean and standard deviation are used:")
    parser.add_argument(
        "--mean", metavar="X,X,X", type=str, help="In place of --data: one number per channel, such as 0.51,0.49,0.44."
    )
    parser.add_argument("--std", metavar="X,X,X", type=str, help="With --mean: one number per channel.")
    parser.add_argument(
        "--labels", action="store_true", help="The files are a labelled set; its images are normalised for a network."
    )
    parser.add_argument(
        "--stored",
        type=Literal["pixels", "normalised"],
        help="With --labels: what images.pt holds. normalised: mean and std were applied, which is undone. Default: "
        "pixels, if nearly all values are in [0, 1].",
    )
    parser.add_argument(
        "--support-input",
        type=Literal["raw", "normalised"],
        default="raw",
        help="Without --labels: how X_SYN enters a network (the published code: raw).",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        type=str,
        help="Name of the row in tables (default: krr-st (published); with --labels: labelled).",
    )
    add_licence(parser)
    add_overwrite(parser)


def run(options: Options) -> None:
    from .. import report as reports

    if (options.data is None) == (options.mean is None) or (options.mean is None) != (options.std is None):
        raise InputError("--data, --mean with --std: expected one of the two, the preprocessing of the real images")
    file, source, classes = reports.new_file(options.out, options.overwrite), "", 0
    if options.data is not None:
        loaded = read_images(options.data, options)
        preprocessing, source, classes = loaded.preprocessing, loaded.name, loaded.classes
    else:
        preprocessing = ssdd.Preprocessing(_numbers("mean", options.mean), _numbers("std", options.std))
    files, name = (options.images, options.targets), options.method
    if options.labels:
        pairs = ssdd.read_labelled(
            *files, preprocessing, method=name or "labelled", source=source, classes=classes, stored=options.stored
        )
    else:
        pairs = ssdd.read_published(
            *files,
            preprocessing,
            method=name or "krr-st (published)",
            source=source,
            support_input=options.support_input,
        )
    pairs.licence = options.licence or ""
    ssdd.write_card(pairs, pairs.save(file))
    print(f"{file}: {len(pairs)} images {list(pairs.images.shape[1:])}, targets {list(pairs.targets.shape[1:])}")


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name}: expected numbers with commas between them, got {text!r}") from None
