"""Distil a classifier into a student without its data: the student sees distilled images and the teacher's soft labels.

The student is pre-trained on the distilled set, gets a new last layer, and learns the teacher's class scores of the
distilled images under random DSA operations. --kd.images noise is the control with Gaussian noise. --data gives the
test images, which measure the student; no training image or label is used.

After a stop at any moment, --resume FILE continues the run.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError, as_dict, with_settings
from .options import (
    FILE,
    NAME,
    Options,
    add_device,
    add_folder,
    add_overwrite,
    add_quiet,
    add_run_settings,
    add_skip_unreadable,
    choose_settings,
    read_alike,
    say,
)
from .resume import make_absolute
from .training import add_training, read_started, run_training

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("[ARTIFACT]",)
ARGUMENTS = ("artifact", "data", "size", "classes", "skip_unreadable", "teacher", "seed", "checkpoint_every")
"""The options that a run stores for --resume, beside its settings."""


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
        help="FILE.safetensors written by `ssdd train-classifier`, or your package.module:factory, which returns an "
        "ssdd.Classifier.",
    )
    parser.add_argument(
        "--data", "-d", metavar="DATA", type=NAME, help="The teacher's task: its test images and their labels."
    )
    add_folder(parser)
    add_skip_unreadable(parser)
    parser.add_argument("--model", metavar="MODEL", type=str, help="The student (student.model).")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Seed of the initial weights and of every random draw."
    )
    add_device(parser)
    add_overwrite(parser)
    add_quiet(parser)
    add_run_settings(parser)


def run(options: Options) -> None:
    file, stored = read_started(options)
    if stored:
        options.take_stored(stored.arguments, *ARGUMENTS)
        options.artifact = options.artifact or stored.arguments["artifact"]  # a positional counts as typed
    for name in ("artifact", "teacher", "data"):
        if getattr(options, name) is None:
            raise InputError(f"{name}: expected it, beside --out FILE")
    settings = choose_settings(options, stored.settings if stored else None)
    if options.model is not None:
        settings = with_settings(settings, {"student.model": options.model})
    config, on = settings.kd, ssdd.choose_device(options.device)
    pairs, teacher = ssdd.DistilledSet.load(options.artifact), ssdd.Classifier.named(options.teacher)
    channels, height, breadth = pairs.images.shape[1:]
    test = read_alike(options, pairs.images.shape[1:])
    ssdd.check_kd(teacher, pairs, test)
    trained_on = teacher.about.get("data", test.name)
    if trained_on != test.name:
        say(f"warning: the teacher was trained on {trained_on}, the test images are of {test.name}")
    make = partial(ssdd.student, settings.student, channels, (height, breadth))
    make(teacher.classes)  # refuses a network that these images do not fit
    recipe = {"student": as_dict(settings.student), "pretrain": as_dict(settings.pretrain)}
    arguments = {name: getattr(options, name) for name in ARGUMENTS}
    arguments |= {name: make_absolute(getattr(options, name)) for name in ("artifact", "data", "teacher")}
    with run_training("kd", file, options, settings, arguments, on) as (display, checkpoints):
        student = ssdd.distil_knowledge(
            teacher,
            pairs,
            make,
            config,
            pretrain=lambda net: ssdd.pretrain(
                net,
                pairs,
                settings.pretrain,
                seed=options.seed,
                report=display,
                checkpoints=checkpoints.before("pretrain"),
            ),
            recipe=recipe,
            seed=options.seed,
            report=display,
            checkpoints=checkpoints,
            device=on,
        )
        s = settings.student
        about = {"kd": as_dict(config), **recipe, "source": pairs.source, "data": test.name, "seed": options.seed}
        made = ssdd.Classifier.from_network(
            student, teacher.preprocessing, (channels, height, breadth), s.model, s.width, s.stem, about
        )
        teacher.module.to(on)
        how = (config.batch, True) if config.mode == "train" else ()
        with checkpoints.without_steps():
            scores = [network.accuracy(test, *how) for network in (teacher, made)]
        made.about |= {"accuracy": scores[1], "teacher_accuracy": scores[0]}
        made.save(file)
    note = ", with the statistics of each batch" if config.mode == "train" else ""
    print(f"{file}: {s.model}, test accuracy {scores[1]:.1f}% (teacher {scores[0]:.1f}%){note}")
