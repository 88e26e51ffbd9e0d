"""A study from its plan to its cells: load the images and teachers that it names, then compute the cells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..artifact import DistilledSet
from ..checkpoint import fingerprint
from ..config import InputError, Report, in_float32, silent
from ..data import CPU, load_images, load_target
from ..evaluation import why_no_probe
from ..teachers import Classifier, Teacher, represent
from .checks import check_rows, without_missing
from .fill import Study, TeacherPair, fill_study
from .plan import SOURCE, Plan
from .store import CELLS, Cells


@in_float32
def run_study(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    work: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    report: Report = silent,
    device: torch.device = CPU,
) -> Study:
    """Compute the cells of ``plan`` that ``out``/cells.jsonl does not have yet, and append them to it.

    Args:
        plan: the rows, seeds and sets.
        out: the folder of the cells.
        work: the folder of distilled sets and pre-trained networks, which a call after a stop reads again. Default:
            ``out``/work.
        cache: the folder for representations. Default: none are kept.
        workers: number of processes, each with one thread; it changes no result. Default 1.
        report: receives ``{"event": "loaded", "summary"}`` per set and per teacher with a summary, ``{"event":
            "warning", "message", "of_plan": True}`` per row whose file does not exist and per set that allows no probe
            (each call finds these anew), and one ``{"event": "study", ...}`` per finished cell. Default: nothing is
            reported.
        device: where networks train and run. Random draws are made in main memory, so a seed draws the same on any
            device. Default: the CPU.

    Returns:
        What all rows share, with the teachers and where each row's files are.

    Raises:
        InputError: if a finished cell was computed from other settings, images or teacher, or if a row needs labels
            that the images lack.
    """
    own = list(dict.fromkeys(row.teacher for row in plan.rows if row.teacher is not None))
    name = plan.teacher
    if name is None and own and all(row.teacher for row in plan.rows if row.source != "nothing"):
        name = str(own[0])  # no row uses the study's teacher
    if plan.data is None or name is None:
        missing = "data" if plan.data is None else "teacher"
        how = "; `ssdd teacher -d DATA -o FILE` trains one" if name is None and plan.data is not None else ""
        raise InputError(f"{missing}: expected it in the file of the study or as --{missing}{how}")
    images = load_images(plan.data, plan.size, classes=plan.classes)
    plan, lines = without_missing(plan)
    for line in lines:
        report({"event": "warning", "message": line, "of_plan": True})
    targets = {key: load_target(path, plan.size, plan.classes, like=images) for key, path in plan.targets.items()}
    classifiers = {key: Classifier.named(file) for key, file in plan.classifiers.items()}
    check_rows(plan, images, targets, classifiers)
    for data in (images, *targets.values()):
        if why := why_no_probe(data):
            report({"event": "warning", "message": why, "of_plan": True})
    network = Teacher.named(name, images.preprocessing, plan.teacher_prefix).to(device)
    others = {path: Teacher.named(str(path), images.preprocessing).to(device) for path in own}
    loaded = [images.summary, *(target.summary for target in targets.values())]
    named = [line for each in (network, *others.values()) for line in (each.summary, each.on_size(images.size))]
    for summary in [*loaded, *named]:
        if summary:
            report({"event": "loaded", "summary": summary})
    inputs = {SOURCE: images.fingerprint, "teacher": network.key()}
    inputs |= {key: target.fingerprint for key, target in targets.items()}
    files = {path: other.key() for path, other in others.items()}
    for path in dict.fromkeys(row.origin.file for row in plan.rows):
        if path is not None:
            pairs = DistilledSet.load(path)
            files[path] = fingerprint(pairs.images) + fingerprint(pairs.targets)
    cells = Cells(Path(out) / CELLS, inputs, files, {key: known.key() for key, known in classifiers.items()})
    teachers: dict[Path | None, TeacherPair] = {None: (network, represent(network, images, cache))}
    for path, other in others.items():
        teachers[path] = (other, represent(other, images, cache))
    study = Study(images, teachers, cells, Path(work or Path(out) / "work"), targets, cache, classifiers, device)
    fill_study(plan, study, workers, without_repeats(report))
    return study


def without_repeats(report: Report) -> Report:
    """Return ``report`` without the warnings that came before: a study's rows have settings in common."""
    seen: set[str] = set()

    def passed(event: dict[str, Any]) -> None:
        if event["event"] == "warning":
            if event["message"] in seen:
                return
            seen.add(event["message"])
        report(event)

    return passed
