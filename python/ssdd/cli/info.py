"""Print, as JSON, what an artifact holds; without one, what is installed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import ssdd

from .options import FILE, Given

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("[ARTIFACT]",)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", type=FILE, nargs="?", help="A distilled set (.safetensors).")


def run(given: Given) -> None:
    print(json.dumps(ssdd.info(given.artifact), indent=1))
