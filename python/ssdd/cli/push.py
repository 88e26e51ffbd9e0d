"""Upload a distilled set and its card to the Hugging Face hub.

It needs the package huggingface_hub (pip install 'ssdd[hf]') and a token: `hf auth login`, or the variable HF_TOKEN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import ssdd

from .options import Options, add_artifact

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("ARTIFACT", "REPO")


def add_arguments(parser: ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument("repo", metavar="REPO", type=str, help="OWNER/NAME on the hub; it is made if it is not there.")
    parser.add_argument(
        "--repo-type", type=Literal["dataset", "model"], default="dataset", help="The kind of repository."
    )
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument(
        "--endpoint", metavar="URL", type=str, help="Address of the hub (without it: HF_ENDPOINT, or huggingface.co)."
    )


def run(options: Options) -> None:
    found = ssdd.push(
        options.artifact, options.repo, repo_type=options.repo_type, private=options.private, endpoint=options.endpoint
    )
    print(f"{options.artifact}: uploaded to {found}")
