"""Write the images of a distilled set as one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ssdd

from .options import COUNT, FILE, Given, add_artifact, add_overwrite

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("ARTIFACT",)


def add_arguments(parser: ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument(
        "--out", "-o", metavar="FILE", type=FILE, help="PNG to write (without it: beside the artifact)."
    )
    parser.add_argument("--columns", metavar="N", type=COUNT, help="Images per row.")
    add_overwrite(parser)


def run(given: Given) -> None:
    from .. import report as reports

    pairs = ssdd.DistilledSet.load(given.artifact)
    file = reports.new_file(given.out or given.artifact.with_suffix(".png"), given.overwrite)
    reports.contact_sheet(pairs.images, file, given.columns)
    print(f"{file}: {len(pairs)} images")
