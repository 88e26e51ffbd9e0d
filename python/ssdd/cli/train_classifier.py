"""Train a classifier on a labelled set: the teacher of `ssdd kd`.

The file holds the weights, how the network is built, and the mean and std of its images. After a stop at any moment,
--resume FILE continues the training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ssdd

from ..config import with_settings
from .options import (
    FILE,
    Options,
    add_device,
    add_images,
    add_overwrite,
    add_quiet,
    add_run_settings,
    choose_settings,
    read_alike,
    read_target,
)
from .resume import make_absolute
from .training import add_training, read_started, run_training

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

ARGUMENTS = ("data", "size", "classes", "skip_unreadable", "like", "seed", "checkpoint_every")
"""The options that a training stores for --resume, beside its settings."""


def add_arguments(parser: ArgumentParser) -> None:
    add_training(parser)
    add_images(parser)
    parser.add_argument(
        "--like", metavar="ARTIFACT", type=FILE, help="Resize the images to those of this distilled set (for ssdd kd)."
    )
    parser.add_argument("--model", metavar="MODEL", type=str, help="The network (classifier.model).")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Seed of the initial weights and of every random draw."
    )
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser, official_side=False)


def run(options: Options) -> None:
    file, stored = read_started(options)
    if stored:
        options.take_stored(stored.arguments, *ARGUMENTS)
    settings = choose_settings(options, stored.settings if stored else None)
    if options.model is not None:
        settings = with_settings(settings, {"classifier.model": options.model})
    on = ssdd.choose_device(options.device)
    if options.like is not None:
        images = read_alike(options, ssdd.DistilledSet.load(options.like).images.shape[1:])
    else:
        images = read_target(options.data, options)
    ssdd.check_labels(images)
    config = settings.classifier
    ssdd.build(config.model, images.channels, images.size, 2, width=config.width, stem=config.stem)  # refused early
    arguments = {name: getattr(options, name) for name in ARGUMENTS}
    arguments |= {"data": make_absolute(options.data), "like": make_absolute(options.like)}
    with run_training("train-classifier", file, options, settings, arguments, on) as (display, checkpoints):
        made = ssdd.train_classifier(
            images, config, seed=options.seed, report=display, checkpoints=checkpoints, device=on
        )
        with checkpoints.without_steps():
            made.about["accuracy"] = made.accuracy(images)
        made.save(file)
    print(f"{file}: {config.model}, {made.classes} classes, test accuracy {made.about['accuracy']:.1f}%")
