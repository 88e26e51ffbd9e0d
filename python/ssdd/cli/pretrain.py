"""Pre-train a new network on a distilled set, which is what the set is made for.

The file holds the weights of the network without its last layer, under the names of ssdd.build(MODEL, ...).backbone.
Those of a ResNet are torchvision's, without `fc` (docs/artifact.md).
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal

import ssdd

from ..config import PretrainConfig
from .options import FILE, Options, add_artifact, add_device, add_overwrite, add_quiet

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("ARTIFACT",)
Stem = Literal["cifar", "imagenet"]

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
        help="resnet18, resnet10, vgg11, alexnet, mobilenetv2, convnet-W-W-... (one width per block), timm:NAME, "
        "torchvision:NAME, or package.module:factory of yours.",
    )
    parser.add_argument(
        "--stem",
        type=Stem,
        default="cifar",
        help="First layers of a ResNet: 3x3 without max-pool (published), or torchvision's 7x7 with max-pool.",
    )
    parser.add_argument(
        "--width", metavar="X", type=float, default=1.0, help="Multiplies all channels of a network of this package."
    )
    parser.add_argument(
        "--epochs", metavar="N", type=int, help="Passes over the distilled set, in place of --steps (published: 1000)."
    )
    text = "Default: the artifact's recipe, or"
    parser.add_argument("--steps", metavar="N", type=int, help=f"Optimizer steps. {text} 1000.")
    parser.add_argument("--lr", metavar="X", type=float, help=f"SGD's learning rate (published: 0.1). {text} 0.1.")
    parser.add_argument("--batch", metavar="N", type=int, help=f"Images per step. {text} 256.")
    parser.add_argument(
        "--schedule",
        type=Literal["constant", "cosine"],
        help=f"Schedule of the learning rate (published: constant). {text} constant.",
    )
    parser.add_argument("--momentum", metavar="X", type=float, help=f"SGD's momentum. {text} 0.9.")
    parser.add_argument("--weight-decay", metavar="X", type=float, help=f"SGD's weight decay. {text} 0.001.")
    parser.add_argument("--contrast", metavar="X", type=float, help=f"The setting pretrain.contrast. {text} 1.")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="Seed of the initial weights and the batches.")
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)


def run(options: Options) -> None:
    from .. import report as reports

    pairs = ssdd.DistilledSet.load(options.artifact)
    file = reports.new_file(options.out, options.overwrite)
    channels, height, breadth = pairs.images.shape[1:]
    config = ssdd.recipe_of(pairs) if pairs.recipe else DEFAULT
    config = replace(config, **{name: getattr(options, name) for name in RECIPE if getattr(options, name) is not None})
    if options.epochs is not None:
        config = replace(config, steps=options.epochs * max(1, len(pairs) // config.batch))
    shape = {"width": options.width, "stem": options.stem}
    network = ssdd.seeded(
        lambda: ssdd.build(options.model, channels, (height, breadth), pairs.targets.shape[1], **shape), options.seed
    )
    network.to(ssdd.choose_device(options.device))
    with reports.Display(show=not options.quiet) as display:
        ssdd.pretrain(network, pairs, config, seed=options.seed, report=display)
    ssdd.save_backbone(network, file, pairs, config, model=options.model, seed=options.seed, **shape)
    origin = "the artifact's recipe" if pairs.recipe else "no recipe in the artifact"
    print(f"{file}: {options.model}, {network.dimension} features, pre-trained on {len(pairs)} images")
    print(f"{origin}: {config.steps} steps, lr {config.lr:g}, {config.schedule}, batch {config.batch}")
