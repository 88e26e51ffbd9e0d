"""Pre-train on a distilled set and measure it: probes, fine-tuning and, given --teacher, the representation error.

It pre-trains with the recipe in the file, or as the preset says if there is none. Targets (--target) are resized to the
images' size. The row "no pre-training" is the same network with a random start: fine-tuned, it is trained from scratch.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import ssdd

from ..config import InputError, with_settings
from .options import (
    COUNT,
    Options,
    add_artifact,
    add_device,
    add_finetune,
    add_images,
    add_quiet,
    add_run_settings,
    add_targets,
    add_teacher,
    choose_settings,
    find_teacher,
    print_table,
    read_images,
    read_target,
    read_targets,
    say,
)
from .resume import stop_at_once

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

POSITIONALS = ("ARTIFACT",)


def add_arguments(parser: ArgumentParser) -> None:
    add_artifact(parser)
    add_images(parser, None, "The images to measure on (default: the digits, if the set was distilled from them):")
    add_targets(parser, "Another set to measure the same networks on (probes and fine-tuning).")
    parser.add_argument(
        "--model", metavar="MODEL", type=str, help="Network to pre-train (default: the preset's student)."
    )
    add_finetune(parser, "Without it: with --target, scaled; else what the preset says.")
    parser.add_argument("--seeds", metavar="N", type=COUNT, default=1, help="Number of pre-trainings, one per seed.")
    add_teacher(parser)
    add_device(parser)
    add_quiet(parser)
    add_run_settings(parser, official_side=False)


def run(options: Options) -> None:
    from .. import report as reports

    pairs, targets = ssdd.DistilledSet.load(options.artifact), read_targets(options)
    if options.data is None:
        if pairs.source != "digits":
            known = f"{pairs.source!r}" if pairs.source else "images that it does not name"
            raise InputError(f"data: this set was distilled from {known}; give the images to measure on with --data")
        options.data = "digits"
    recipe = ssdd.recipe_of(pairs) if pairs.recipe else None
    settings = choose_settings(options, recipe=recipe)
    if options.target and options.finetune is None:
        if not settings.finetune.share and "finetune.share" not in options.settings:
            options.finetune = "scaled"
            settings = choose_settings(options, recipe=recipe)
        if settings.finetune.share:
            steps = settings.finetune.steps
            say(f"fine-tuning: {steps:,} steps (the paper's: --finetune published; none: --finetune.share 0)")
    say(f"pre-training: {origin_of(settings.pretrain, recipe)}")
    if options.model is not None:
        settings = with_settings(settings, {"student.model": options.model})
    loaded, on = read_images(options.data, options), ssdd.choose_device(options.device)
    sets = {"": loaded} | {name: _read_target(name, data, options, loaded) for name, data in targets.items()}
    ssdd.student(settings.student, loaded.channels, loaded.size, 1)  # refuses a network that these images do not fit
    ssdd.check_targets(dict(list(sets.items())[1:]), settings.finetune)
    for images in sets.values():
        say(ssdd.why_no_probe(images))
    known_teacher = find_teacher(options, loaded, on)
    test = known_teacher[1].test if known_teacher else None
    if test is not None and pairs.target_kind == "representation" and test.shape[1] != pairs.targets.shape[1]:
        raise InputError(
            f"teacher: the artifact's targets have {pairs.targets.shape[1]} numbers, this teacher's {test.shape[1]}"
        )
    with reports.Display(show=not options.quiet) as display, stop_at_once():
        make = partial(ssdd.student, settings.student, loaded.channels, loaded.size)
        runs = [
            ssdd.evaluate_on(what, sets, {"": test}, make, settings, seed=s, report=display, device=on)
            for what in (pairs, None)
            for s in range(options.seeds)
        ]
    for name in sets:
        if name:
            print(f"\n{name}:")
        print_table(reports.table([cells[name].as_dict() for cells in runs]))
    measured = [cell.as_dict() for cells in runs for cell in cells.values()]
    if all(cell["error"] is None and not cell["probes"] and cell["finetuned"] is None for cell in measured):
        say("nothing could be measured: give the teacher (--teacher) for the representation error, or labelled images")
    for line in (*reports.worth_little(measured), *reports.legend(measured)):
        say(line)


def _read_target(name: str, data: str, options: Options, like: ssdd.ImageSet) -> ssdd.ImageSet:
    try:
        return read_target(data, options, like)
    except InputError as error:
        raise InputError(f"target {name}: {error}") from None


def origin_of(used: ssdd.PretrainConfig, recipe: ssdd.PretrainConfig | None) -> str:
    """Return the pre-training in words, and where it comes from."""
    origin = "the artifact's recipe" if used == recipe else "not the artifact's recipe" if recipe else "of the preset"
    return f"{used.steps:,} steps, lr {used.lr:g}, batch {used.batch}, {used.schedule} ({origin}; --pretrain.steps ...)"
