"""Print the content of an artifact as JSON; without one, the versions of the installation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import ssdd

from .options import FILE, Options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("[ARTIFACT]",)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", type=FILE, nargs="?", help="A distilled set (.safetensors).")


def run(options: Options) -> None:
    print(json.dumps(ssdd.info(options.artifact), indent=1))
