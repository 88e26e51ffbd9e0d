"""Pre-train a new network on a distilled set: what the artifact is for.

The file holds the weights of the network without its last layer (its features), under the names of
ssdd.build(MODEL, ...).backbone.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal

import ssdd

from ..config import PretrainConfig
from .options import FILE, Given, add_artifact, add_device, add_overwrite, add_quiet

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("ARTIFACT",)

DEFAULT = PretrainConfig(steps=1000, lr=0.1, schedule="constant")
"""The published recipe, for an artifact that carries none."""

RECIPE = tuple(field.name for field in fields(PretrainConfig))


def add_arguments(parser: ArgumentParser) -> None:
    add_artifact(parser)
    parser.add_argument(
        "--out", "-o", metavar="FILE", type=FILE, required=True, help="File for the weights (.safetensors)."
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        type=str,
        default="resnet18",
        help="resnet18, resnet10, or convnet-W-W-... (one width per block).",
    )
    parser.add_argument(
        "--epochs", metavar="N", type=int, help="Passes over the distilled set, in place of --steps (published: 1000)."
    )
    text = "Without it: as the artifact's recipe says, or "
    parser.add_argument("--steps", metavar="N", type=int, help=f"Optimizer steps. {text}1000.")
    parser.add_argument("--lr", metavar="X", type=float, help=f"SGD's lr (published: 0.1). {text}0.1.")
    parser.add_argument("--batch", metavar="N", type=int, help=f"Images per step. {text}256.")
    parser.add_argument(
        "--schedule",
        type=Literal["constant", "cosine"],
        help=f"Schedule of the lr (published: constant). {text}constant.",
    )
    parser.add_argument("--momentum", metavar="X", type=float, help=f"SGD's momentum. {text}0.9.")
    parser.add_argument("--weight-decay", metavar="X", type=float, help=f"SGD's weight decay. {text}0.001.")
    parser.add_argument("--contrast", metavar="X", type=float, help=f"The setting pretrain.contrast. {text}1.")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="Fixes the random start.")
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)


def run(given: Given) -> None:
    from .. import report as reports

    pairs = ssdd.DistilledSet.load(given.artifact)
    file = reports.new_file(given.out, given.overwrite)
    channels, height, width = pairs.images.shape[1:]
    config = ssdd.recipe_of(pairs) if pairs.recipe else DEFAULT
    config = replace(config, **{name: getattr(given, name) for name in RECIPE if getattr(given, name) is not None})
    if given.epochs is not None:
        config = replace(config, steps=given.epochs * max(1, len(pairs) // config.batch))
    network = ssdd.seeded(
        lambda: ssdd.build(given.model, channels, (height, width), pairs.targets.shape[1]), given.seed
    )
    network.to(ssdd.choose_device(given.device))
    with reports.Display(show=not given.quiet) as display:
        ssdd.pretrain(network, pairs, config, seed=given.seed, report=display)
    ssdd.save_backbone(network, file, pairs, config, model=given.model, seed=given.seed)
    origin = "the artifact's recipe" if pairs.recipe else "no recipe in the artifact"
    print(f"{file}: {given.model}, {network.dimension} features, pre-trained on {len(pairs)} images")
    print(f"{origin}: {config.steps} steps, lr {config.lr:g}, {config.schedule}, batch {config.batch}")
