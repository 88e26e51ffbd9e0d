"""A study from its plan to its cells: load what it names, then fill them."""

from __future__ import annotations

import os
from pathlib import Path

from ..config import InputError, Report, silent
from ..data import load_images, load_target
from ..evaluation import check_targets, why_no_probe
from ..models import student
from ..teachers import Teacher, represent
from .fill import Study, TeacherPair, fill_study
from .plan import Plan
from .store import CELLS, SOURCE, Cells


def run_study(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    work: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    report: Report = silent,
) -> None:
    """Compute the cells of ``plan`` that ``out``/cells.jsonl does not hold yet; they are appended to it.

    ``work`` (default: ``out``/work) keeps the distilled sets and the pre-trained networks, so that a call that was
    stopped goes on behind the last of them. ``cache``: the folder for representations (default: none are kept).
    ``workers``: processes of one thread each; their number changes no result. Reports ``{"event": "loaded",
    "summary"}`` per set of images and per teacher that says what was found, and ``{"event": "warning", "message"}`` per
    set that no probe can be made on, then what :func:`fill_study` reports.
    Raises :class:`InputError` if a finished cell was computed from other settings, images or teacher.
    """
    own = list(dict.fromkeys(row.teacher for row in plan.rows if row.teacher is not None))
    name = plan.teacher
    if name is None and own and all(row.teacher for row in plan.rows if row.source != "nothing"):
        name = str(own[0])  # no row asks for it
    if plan.data is None or name is None:
        missing = "data" if plan.data is None else "teacher"
        raise InputError(f"{missing}: expected it in the file of the study or as --{missing}")
    images = load_images(plan.data, plan.size, classes=plan.classes)
    targets = {key: load_target(path, plan.size, plan.classes, like=images) for key, path in plan.targets.items()}
    for row in plan.rows:
        check_targets(targets, row.settings.finetune)
    for student_config in {row.settings.student for row in plan.rows if row.source != "teacher"}:
        student(student_config, images.channels, images.size, 1)  # refuses a network that these images do not fit
    for data in (images, *targets.values()):
        if why := why_no_probe(data):
            report({"event": "warning", "message": why})
    network = Teacher.named(name, images.preprocessing, plan.teacher_prefix)
    others = {path: Teacher.named(str(path), images.preprocessing) for path in own}
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
    study = Study(images, teachers, cells, Path(work or Path(out) / "work"), targets, cache)
    fill_study(plan, study, workers, report)
