"""Write a distilled set in another form: image folder, Hugging Face data set, ddranking's tensors, compact file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import ssdd

from .options import FILE, Options, add_artifact

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("ARTIFACT",)
Form = Literal["folder", "huggingface", "ddranking", "compact"]


def add_arguments(parser: ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument("--out", "-o", metavar="FOLDER", type=FILE, required=True, help="New folder.")
    parser.add_argument(
        "--form", type=Form, default="folder", help="The form. compact: the set itself, about a fifth of the bytes."
    )
    parser.add_argument(
        "--labels", metavar="FILE.npy", type=FILE, help="For ddranking: class scores, one row per image."
    )


def run(options: Options) -> None:
    pairs = ssdd.DistilledSet.load(options.artifact)
    labels = None if options.labels is None else ssdd.read_scores(options.labels)
    cost = ssdd.export(pairs, options.out, options.form, labels)
    print(f"{options.out}: {len(pairs)} images, form {options.form}")
    if options.form == "ddranking":
        name, constants = ssdd.ddranking_constants(pairs)
        print(f"images.pt is normalised as ddranking normalises {name}: mean {constants.mean}, std {constants.std}")
        if pairs.support_input == "raw":
            print("raw set: its pixels are what a network takes, beside normalised real images; they keep that place")
    if options.form == "compact":
        bytes_now = (options.out / "distilled.safetensors").stat().st_size
        print(
            f"distilled.safetensors: {bytes_now:,} bytes ({options.artifact.stat().st_size:,} before); 8 bits per "
            f"pixel, the largest change {cost['largest_change']:.4f}"
        )
    elif cost["largest_change"]:
        print(
            f"8 bits per value: {cost['clipped']:.1%} of the values clipped, the largest change "
            f"{cost['largest_change']:.3f}; the exact set lies beside the pictures"
        )
