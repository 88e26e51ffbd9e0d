"""A study from its file to its folder: load what it names, fill its cells, keep its page up to date."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..config import Event, InputError, Report, silent
from ..data import load_images
from ..evaluate import SOURCE, Cells, Filling, Plan, Study, fill, read_plan
from ..teachers import Teacher, represent
from .page import write_page


def run_study(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    teacher: str | None = None,
    targets: Mapping[str, str | os.PathLike[str]] | None = None,
    work: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int = 1,
    report: Report = silent,
) -> Plan:
    """Compute the cells of the study ``file`` that ``out``/cells does not hold yet, one JSON file each.

    ``data``, ``teacher`` and ``targets`` take the place of what the file names. ``work`` (default: ``out``/work) keeps
    the distilled sets and the pre-trained networks, so that a call that was stopped goes on behind the last of them.
    ``out``/README.md holds the tables, rewritten after each cell. ``cache``: the folder for representations. Raises
    :class:`InputError` where a finished cell was computed from other settings, images or teacher. See
    :func:`ssdd.evaluate.read_plan` for the file.
    """
    plan = read_plan(file)
    own = list(dict.fromkeys(row.teacher for row in plan.rows if row.teacher is not None))
    source, name = data or plan.data, teacher or plan.teacher
    if name is None and own and all(row.teacher for row in plan.rows if row.source != "nothing"):
        name = str(own[0])  # no row asks for it
    if source is None or name is None:
        missing = "data" if source is None else "teacher"
        raise InputError(f"{missing}: expected it in {file} or as --{missing}")
    images = load_images(Path(source))
    network = Teacher.named(str(name), images.preprocessing)
    others = {path: Teacher.named(str(path), images.preprocessing) for path in own}
    sets = {key: load_images(Path(path)) for key, path in {**plan.targets, **(targets or {})}.items()}
    for key, found in sets.items():
        if (found.channels, found.size) != (images.channels, images.size):
            raise InputError(
                f"targets: {key}: expected images of {[*images.size, images.channels]} as {images.name} has, "
                f"got {[*found.size, found.channels]}"
            )
    inputs = {SOURCE: images.fingerprint, "teacher": network.key()}
    inputs |= {key: found.fingerprint for key, found in sets.items()}
    study = Study(images, represent(network, images, cache), plan.rows[0].settings, network, cache)
    folder = Path(out)
    cells = Cells(folder / "cells", inputs, {path: found.key() for path, found in others.items()})
    known = {path: (found, represent(found, images, cache)) for path, found in others.items()}
    filling = Filling(study, sets, cells, Path(work or folder / "work"), known)

    def told(event: Event) -> None:
        if event["event"] == "study":
            write_page(plan, folder)
        report(event)

    fill(plan, filling, workers, told)
    write_page(plan, folder)
    return plan
