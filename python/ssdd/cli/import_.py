"""Read the published x_syn.pt and y_syn.pt (weights only: nothing in them is executed) into an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import ssdd

from ..config import InputError
from .options import FILE, Options, add_images, add_licence, add_overwrite, read_images

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("X_SYN", "Y_SYN")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("images", metavar="X_SYN", type=FILE, help="x_syn.pt of the published code.")
    parser.add_argument("targets", metavar="Y_SYN", type=FILE, help="y_syn.pt: representations, or labels.")
    parser.add_argument(
        "--out", "-o", metavar="FILE", type=FILE, required=True, help="File for the artifact (.safetensors)."
    )
    add_images(parser, None, "The real images, whose mean and standard deviation are used:")
    parser.add_argument(
        "--mean", metavar="X,X,X", type=str, help="In place of --data: one number per channel, such as 0.51,0.49,0.44."
    )
    parser.add_argument("--std", metavar="X,X,X", type=str, help="With --mean: one number per channel.")
    parser.add_argument(
        "--support-input",
        type=Literal["raw", "normalised"],
        default="raw",
        help="How X_SYN enters a network (the published code: raw).",
    )
    parser.add_argument(
        "--method", metavar="NAME", type=str, default="krr-st (published)", help="Name of the row in tables."
    )
    add_licence(parser)
    add_overwrite(parser)


def run(options: Options) -> None:
    from .. import report as reports

    if (options.data is None) == (options.mean is None) or (options.mean is None) != (options.std is None):
        raise InputError("--data, --mean with --std: expected one of the two, the preprocessing of the real images")
    file, source = reports.new_file(options.out, options.overwrite), ""
    if options.data is not None:
        loaded = read_images(options.data, options)
        preprocessing, source = loaded.preprocessing, loaded.name
    else:
        preprocessing = ssdd.Preprocessing(_numbers("mean", options.mean), _numbers("std", options.std))
    pairs = ssdd.read_published(
        options.images,
        options.targets,
        preprocessing,
        method=options.method,
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
