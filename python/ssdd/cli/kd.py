"""Distil a classifier into a student without its data: the student sees distilled images and the teacher's soft labels.

The student is pre-trained on the distilled set, gets a new last layer, and learns the teacher's class scores of the
distilled images under random DSA operations. --kd.images noise is the control with Gaussian noise. --data gives the
test images, which measure the student; no training image or label is used.

Stopped at any moment, the run goes on with --resume FILE.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError, as_dict, with_settings
from .options import (
    FILE,
    NAME,
    Given,
    add_device,
    add_folder,
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

POSITIONALS = ("[ARTIFACT]",)
ARGUMENTS = ("artifact", "data", "size", "classes", "teacher", "seed", "checkpoint_every")
"""The options that a run keeps for --resume, beside its settings."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", type=FILE, nargs="?", help="A distilled set (.safetensors); not with --resume."
    )
    add_training(parser)
    parser.add_argument(
        "--teacher",
        "-t",
        metavar="TEACHER",
        type=NAME,
        help="FILE.safetensors written by `ssdd train-classifier`, or package.module:factory of yours that returns an "
        "ssdd.Classifier.",
    )
    parser.add_argument(
        "--data", "-d", metavar="DATA", type=NAME, help="The teacher's task: its test images and their labels."
    )
    add_folder(parser)
    parser.add_argument("--model", metavar="MODEL", type=str, help="The student (student.model).")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="Fixes the random start and every draw.")
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser)


def run(given: Given) -> None:
    file, begun = started(given)
    if begun:
        given.earlier(begun.arguments, *ARGUMENTS)
        given.artifact = given.artifact or begun.arguments["artifact"]  # a positional counts as typed
    for name in ("artifact", "teacher", "data"):
        if getattr(given, name) is None:
            raise InputError(f"{name}: expected it, beside --out FILE")
    settings = chosen_settings(given, begun.settings if begun else None)
    if given.model is not None:
        settings = with_settings(settings, {"student.model": given.model})
    config, on = settings.kd, ssdd.choose_device(given.device)
    pairs, teacher = ssdd.DistilledSet.load(given.artifact), ssdd.Classifier.named(given.teacher)
    channels, height, breadth = pairs.images.shape[1:]
    test = ssdd.fitted(ssdd.load_target(given.data, given.size, given.classes), channels, (height, breadth))
    say(test.summary)
    ssdd.check_kd(teacher, pairs, test)
    trained_on = teacher.about.get("data", test.name)
    if trained_on != test.name:
        say(f"warning: the teacher was trained on {trained_on}, the test images are of {test.name}")
    make = partial(ssdd.student, settings.student, channels, (height, breadth))
    make(teacher.classes)  # refuses a network that these images do not fit
    recipe = {"student": as_dict(settings.student), "pretrain": as_dict(settings.pretrain)}
    arguments = {name: getattr(given, name) for name in ARGUMENTS}
    arguments |= {name: absolute(getattr(given, name)) for name in ("artifact", "data", "teacher")}
    with training("kd", file, given, settings, arguments, on) as (display, checkpoints):
        student = ssdd.distil_knowledge(
            teacher,
            pairs,
            make,
            config,
            pretrain=lambda net: ssdd.pretrain(net, pairs, settings.pretrain, seed=given.seed, report=display),
            recipe=recipe,
            seed=given.seed,
            report=display,
            checkpoints=checkpoints,
            device=on,
        )
        s = settings.student
        about = {"kd": as_dict(config), **recipe, "source": pairs.source, "data": test.name, "seed": given.seed}
        made = ssdd.Classifier.built(
            student, teacher.preprocessing, (channels, height, breadth), s.model, s.width, s.stem, about
        )
        teacher.module.to(on)
        how = (config.batch, True) if config.mode == "train" else ()
        scores = [network.accuracy(test, *how) for network in (teacher, made)]
        made.about |= {"accuracy": scores[1], "teacher_accuracy": scores[0]}
        made.save(file)
    note = ", with the statistics of each batch" if config.mode == "train" else ""
    print(f"{file}: {s.model}, test accuracy {scores[1]:.1f}% (teacher {scores[0]:.1f}%){note}")
