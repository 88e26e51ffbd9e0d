"""Pre-train a new network on a distilled set, which is what the set is made for.

The file holds the weights of the network without its last layer, under the names of ssdd.build(MODEL, ...).backbone.
Those of a ResNet are torchvision's, without `fc` (docs/artifact.md). After a stop at any moment, --resume FILE
continues the training.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Literal

import ssdd

from ..config import InputError, PretrainConfig, Settings
from .options import FILE, Options, add_device, add_overwrite, add_quiet
from .resume import make_absolute
from .training import add_training, read_started, run_training

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("[ARTIFACT]",)
Stem = Literal["cifar", "imagenet"]

DEFAULT = PretrainConfig(steps=1000, lr=0.1, schedule="constant")
"""The published recipe, for an artifact that carries none."""

RECIPE = tuple(field.name for field in fields(PretrainConfig))

ARGUMENTS = ("artifact", "model", "stem", "width", "seed", "checkpoint_every")
"""The options that a training stores for --resume, beside its recipe."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", type=FILE, nargs="?", help="A distilled set (.safetensors); not with --resume."
    )
    add_training(parser)
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
    file, stored = read_started(options)
    if stored:
        options.take_stored(stored.arguments, *ARGUMENTS)
        options.artifact = options.artifact or stored.arguments["artifact"]  # a positional counts as typed
    if options.artifact is None:
        raise InputError("artifact: expected a distilled set, beside --out FILE")
    pairs = ssdd.DistilledSet.load(options.artifact)
    channels, height, breadth = pairs.images.shape[1:]
    config = ssdd.recipe_of(pairs) if pairs.recipe else DEFAULT
    config = stored.settings.pretrain if stored else config
    config = replace(config, **{name: getattr(options, name) for name in RECIPE if getattr(options, name) is not None})
    if options.epochs is not None:
        config = replace(config, steps=options.epochs * max(1, len(pairs) // config.batch))
    shape = {"width": options.width, "stem": options.stem}
    network = ssdd.seeded(
        lambda: ssdd.build(options.model, channels, (height, breadth), pairs.targets.shape[1], **shape), options.seed
    )
    on = ssdd.choose_device(options.device)
    network.to(on)
    arguments = {name: getattr(options, name) for name in ARGUMENTS} | {"artifact": make_absolute(options.artifact)}
    settings = Settings("pretrain", pretrain=config)
    with run_training("pretrain", file, options, settings, arguments, on) as (display, checkpoints):
        ssdd.pretrain(network, pairs, config, seed=options.seed, report=display, checkpoints=checkpoints)
        ssdd.save_backbone(network, file, pairs, config, model=options.model, seed=options.seed, **shape)
    origin = "no recipe in the artifact"
    if pairs.recipe:
        origin = "the artifact's recipe" + ("" if config == ssdd.recipe_of(pairs) else ", changed")
    print(f"{file}: {options.model}, {network.dimension} features, pre-trained on {len(pairs)} images")
    print(f"{origin}: {config.steps} steps, lr {config.lr:g}, {config.schedule}, batch {config.batch}")
