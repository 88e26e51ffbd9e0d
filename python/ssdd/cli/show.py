"""Write the images of a distilled set as one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ssdd

from .options import COUNT, FILE, Options, add_artifact, add_overwrite

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("ARTIFACT",)


def add_arguments(parser: ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument("--out", "-o", metavar="FILE", type=FILE, help="PNG to write (default: beside the artifact).")
    parser.add_argument("--columns", metavar="N", type=COUNT, help="Images per row.")
    add_overwrite(parser)


def run(options: Options) -> None:
    from .. import report as reports

    pairs = ssdd.DistilledSet.load(options.artifact)
    file = reports.new_file(options.out or options.artifact.with_suffix(".png"), options.overwrite)
    reports.contact_sheet(pairs.images, file, options.columns)
    print(f"{file}: {len(pairs)} images")
