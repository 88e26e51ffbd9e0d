"""Write a report to look at: one HTML file about the folders of runs, several side by side.

It shows the images and the real ones nearest to them, curves, coverage, tables, every setting and the exact command.
It loads nothing from the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ssdd

from .options import FILE, Options, add_overwrite

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("RUN...",)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", metavar="RUN", type=FILE, nargs="+", help="Folder that distill, demo or study wrote to. Repeatable."
    )
    parser.add_argument(
        "--out",
        "-o",
        metavar="FILE",
        type=FILE,
        help="HTML file to write (without it: report.html in RUN, written anew; of several runs: here).",
    )
    parser.add_argument(
        "--work", metavar="FOLDER", type=FILE, help="Of a study, the folder that was its --work (without it: RUN/work)."
    )
    add_overwrite(parser)


def run(options: Options) -> None:
    from .. import report as reports

    file = options.out
    if file is None and len(options.runs) > 1:
        file = FILE(reports.REPORT)
    if file is not None:
        file = reports.new_file(file, options.overwrite)
    written = ssdd.write_report(options.runs, file, work=options.work)
    print(f"{written}: {written.stat().st_size / 1e6:.1f} MB")
