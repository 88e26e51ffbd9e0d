"""A study from its plan to its cells: load the images and teachers that it names, then compute the cells."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..config import InputError, Report, silent
from ..data import CPU, ImageSet, load_images, load_target
from ..distillation import target_size
from ..evaluation import check_targets, why_no_probe
from ..models import student
from ..teachers import Teacher, represent
from .fill import Study, TeacherPair, fill_study
from .plan import Plan, Row
from .store import CELLS, SOURCE, Cells


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
            "warning", "message"}`` per set that allows no probe, and one ``{"event": "study", ...}`` per finished cell.
            Default: nothing is reported.
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
        raise InputError(f"{missing}: expected it in the file of the study or as --{missing}")
    images = load_images(plan.data, plan.size, classes=plan.classes)
    targets = {key: load_target(path, plan.size, plan.classes, like=images) for key, path in plan.targets.items()}
    _check_rows(plan, images, targets, report)
    network = Teacher.named(name, images.preprocessing, plan.teacher_prefix).to(device)
    others = {path: Teacher.named(str(path), images.preprocessing).to(device) for path in own}
    loaded = [images.summary, *(target.summary for target in targets.values())]
    for summary in [*loaded, network.summary, *(other.summary for other in others.values())]:
        if summary:
            report({"event": "loaded", "summary": summary})
    inputs = {SOURCE: images.fingerprint, "teacher": network.key()}
    inputs |= {key: target.fingerprint for key, target in targets.items()}
    cells = Cells(Path(out) / CELLS, inputs, {path: other.key() for path, other in others.items()})
    teachers: dict[Path | None, TeacherPair] = {None: (network, represent(network, images, cache))}
    for path, other in others.items():
        teachers[path] = (other, represent(other, images, cache))
    study = Study(images, teachers, cells, Path(work or Path(out) / "work"), targets, cache, device)
    fill_study(plan, study, workers, report)
    return study


def _check_rows(plan: Plan, images: ImageSet, targets: dict[str, ImageSet], report: Report) -> None:
    """Raise :class:`InputError` if a row and the sets do not fit together; report each set that allows no probe."""
    for row in plan.rows:
        check_targets(targets, row.settings.finetune)
        _check_row(row, images)
    for student_config in {row.settings.student for row in plan.rows if row.source != "teacher"}:
        student(student_config, images.channels, images.size, 1)  # refuses a network that these images do not fit
    for data in (images, *targets.values()):
        if why := why_no_probe(data):
            report({"event": "warning", "message": why})


def _check_row(row: Row, images: ImageSet) -> None:
    """Raise :class:`InputError` if ``row`` needs labels that ``images`` lack, before any row is computed."""
    try:
        if row.distilled:
            target_size(row.settings.distill, images, dimension=1)
        elif row.targets == "labels":
            images.one_hot()
    except InputError as error:
        raise InputError(f"row {row.name}: {error}") from None
