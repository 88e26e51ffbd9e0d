"""Train a classifier on a labelled set: the teacher of `ssdd kd`.

The file holds the weights, how the network is built, and the mean and std of its images. Stopped at any moment, the
training goes on with --resume FILE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ssdd

from ..config import with_settings
from .options import (
    FILE,
    Given,
    add_device,
    add_images,
    add_overwrite,
    add_quiet,
    add_run_settings,
    chosen_settings,
    say,
)
from .resume import absolute
from .training import add_training, started, training

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

ARGUMENTS = ("data", "size", "classes", "skip_unreadable", "like", "seed", "checkpoint_every")
"""The options that a training keeps for --resume, beside its settings."""


def add_arguments(parser: ArgumentParser) -> None:
    add_training(parser)
    add_images(parser)
    parser.add_argument(
        "--like", metavar="ARTIFACT", type=FILE, help="Resize the images to those of this distilled set (for ssdd kd)."
    )
    parser.add_argument("--model", metavar="MODEL", type=str, help="The network (classifier.model).")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="Fixes the random start and every draw.")
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser, official_side=False)


def run(given: Given) -> None:
    file, begun = started(given)
    if begun:
        given.earlier(begun.arguments, *ARGUMENTS)
    settings = chosen_settings(given, begun.settings if begun else None)
    if given.model is not None:
        settings = with_settings(settings, {"classifier.model": given.model})
    on, images = (
        ssdd.choose_device(given.device),
        ssdd.load_target(given.data, given.size, given.classes, given.skip_unreadable),
    )
    if given.like is not None:
        shape = ssdd.DistilledSet.load(given.like).images.shape[1:]
        images = ssdd.fitted(images, shape[0], (shape[1], shape[2]))
    say(images.summary)
    ssdd.check_labels(images)
    config = settings.classifier
    ssdd.build(config.model, images.channels, images.size, 2, width=config.width, stem=config.stem)  # refused early
    arguments = {name: getattr(given, name) for name in ARGUMENTS}
    arguments |= {"data": absolute(given.data), "like": absolute(given.like)}
    with training("train-classifier", file, given, settings, arguments, on) as (display, checkpoints):
        made = ssdd.train_classifier(
            images, config, seed=given.seed, report=display, checkpoints=checkpoints, device=on
        )
        made.about["accuracy"] = made.accuracy(images)
        made.save(file)
    print(f"{file}: {config.model}, {made.classes} classes, test accuracy {made.about['accuracy']:.1f}%")
