"""Checks of a study before anything is computed: rows, networks, imported pairs, targets and classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..artifact import DistilledSet
from ..config import InputError, StudentConfig
from ..data import ImageSet
from ..distillation import target_size
from ..evaluation import check_targets
from ..models import student
from ..teachers import Classifier, check_kd
from .kd import blank_images, images_for
from .plan import Plan, Row


def without_missing(plan: Plan) -> tuple[Plan, list[str]]:
    """Return the plan without the rows whose file of pairs does not exist, and one line per such row."""
    missing = {row.name: row.origin.file for row in plan.rows if (f := row.origin.file) is not None and not f.is_file()}
    lines = [f"row {name}: missing, as {file} does not exist (ssdd import writes it)" for name, file in missing.items()]
    return replace(plan, rows=tuple(row for row in plan.rows if row.name not in missing)), lines


def check_rows(
    plan: Plan, images: ImageSet, targets: Mapping[str, ImageSet], classifiers: Mapping[str, Classifier]
) -> None:
    """Raise :class:`InputError`, naming the row, if a row cannot be computed."""
    pairs: dict[object, DistilledSet] = {}
    networks: set[StudentConfig] = set()
    for row in plan.rows:
        check_targets(dict(targets), row.settings.finetune)
        try:
            check_row(row, images)
            if row.source != "teacher" and row.settings.student not in networks:
                student(row.settings.student, images.channels, images.size, 1)  # refuses a size it does not exist at
                networks.add(row.settings.student)
            if (file := row.origin.file) is not None:
                if file not in pairs:
                    pairs[file] = DistilledSet.load(file)
                check_pairs(pairs[file], images)
            for name, classifier in classifiers.items() if row.kd else ():
                blank = blank_images(classifier, images, row.settings)
                images_for(None if row.source == "nothing" else blank, classifier, images, row.settings)
                check_kd(classifier, blank, targets[name])
        except InputError as error:
            raise InputError(f"row {row.name}: {error}") from None


def check_row(row: Row, images: ImageSet) -> None:
    """Raise :class:`InputError` if ``row`` needs labels that ``images`` lack, or more images than there are."""
    if row.distilled:
        target_size(row.settings.distill, images, dimension=1)
    elif row.targets == "labels" and images.y_train is None:
        raise InputError(f"{images.name}: expected labelled training images, got none with labels")
    if (row.selected or row.distilled) and not row.settings.distill.budget:
        count, there = row.settings.distill.images, len(images.x_train)
        if count > there:
            raise InputError(f"distill.images: expected at most {there}, the training images, got {count}")


def check_pairs(pairs: DistilledSet, images: ImageSet) -> None:
    """Raise :class:`InputError` if imported pairs are not of the size of ``images``."""
    shape = [images.channels, *images.size]
    if list(pairs.images.shape[1:]) != shape:
        raise InputError(f"file: expected images of {shape} as the data have, got {list(pairs.images.shape[1:])}")
