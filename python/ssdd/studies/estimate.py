"""A dry run: every row of a study is checked, and its cost is estimated; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ..artifact import DistilledSet, Preprocessing
from ..config import InputError, Settings, StudentConfig
from ..data import ImageSet, load_images, load_target
from ..distillation import check_before_training, image_count, target_size
from ..evaluation import steps_for
from ..models import count_multiply_adds, count_parameters, student
from ..teachers import Classifier, Teacher, new_backbone
from .checks import check_rows, without_missing
from .plan import SOURCE, Plan, Row
from .store import CELLS, read_cells

BACKWARD = 2
"""Multiply-adds of a backward pass, in those of a forward pass."""


@dataclass(frozen=True)
class RowEstimate:
    """What one row takes, per seed. Costs are multiply-adds of networks and of the kernel ridge regression."""

    row: Row
    parameters: int
    """Weights of the student, without its last layer."""
    images: int
    """Number of pairs it is pre-trained on; 0 for none."""
    bytes: int
    """Bytes of the pairs."""
    steps: int
    """Steps of pre-training."""
    pairs_cost: float
    """Of making the pairs; 0 for a row that uses those of another row."""
    cell_cost: float
    """Of pre-training and of all measurements."""
    missing: int
    """Cells that are not computed yet."""

    @property
    def cost(self) -> float:
        """Multiply-adds of all seeds, if no cell is there yet."""
        return self.row.seeds * (self.pairs_cost + self.cell_cost)


@dataclass(frozen=True)
class StudyEstimate:
    """What a study takes, and which of its files are missing."""

    rows: tuple[RowEstimate, ...]
    cells: int
    """All cells of the rows that can be computed."""
    teacher_cost: float
    """Multiply-adds of the teacher's representations."""
    missing: tuple[str, ...]
    """One line per file that does not exist, and per row that lacks one."""
    notes: tuple[str, ...]
    """One line per set that is not what the file expects."""

    @property
    def cost(self) -> float:
        """Multiply-adds of all missing cells; a row of which some cells are there counts with their share."""
        share = [r.missing / max(1, self.cells_per_row(r)) for r in self.rows]
        return self.teacher_cost + sum(r.cost * part for r, part in zip(self.rows, share, strict=True))

    def cells_per_row(self, estimate: RowEstimate) -> int:
        """Return the number of cells of a row."""
        return self.cells * estimate.row.seeds // max(1, sum(r.row.seeds for r in self.rows))


def estimate_study(plan: Plan, out: Path) -> StudyEstimate:
    """Check every row of ``plan`` and estimate its cost, without any training.

    Args:
        plan: the study.
        out: the folder of its cells, which need not exist.

    Raises:
        InputError: for what would stop the study, besides files that do not exist yet. A set that does not exist is
            taken to be what ``plan.expect`` says.
    """
    missing: list[str] = []
    notes: list[str] = []
    images = _load(plan, SOURCE, plan.data, None, missing, notes)
    targets = {name: _load(plan, name, path, images, missing, notes) for name, path in plan.targets.items()}
    classifiers = {}
    for name, file in plan.classifiers.items():
        if _exists(file):
            classifiers[name] = Classifier.named(file)
        else:
            missing.append(f"classifier of {name}: {file} does not exist (ssdd train-classifier writes it)")
    plan, rows = without_missing(plan)
    missing += rows
    check_rows(plan, images, targets, classifiers)
    teacher = _teacher(plan, images, missing)
    for row in plan.rows:
        if row.distilled:
            _check_distilled(row, images, teacher)
    found = read_cells(out / CELLS)
    estimates = tuple(
        _estimate(row, plan, images, targets, classifiers, teacher, _missing_cells(row, plan, found))
        for row in plan.rows
    )
    cost = 0.0
    if teacher.module is not None:
        cost = count_multiply_adds(teacher.module, images.channels, images.size)
        cost *= float(len(images.x_train) + len(images.x_test))
    cells = sum(row.seeds for row in plan.rows) * len(plan.sets)
    return StudyEstimate(estimates, cells, cost, tuple(missing), tuple(notes))


@dataclass(frozen=True)
class _Stand:
    """The teacher, or what is known of it while its file does not exist."""

    dimension: int
    module: torch.nn.Module | None
    teacher: Teacher | None = None


def _exists(name: str | Path) -> bool:
    return ":" in str(name) or Path(name).exists()


def _load(
    plan: Plan, name: str, path: str | Path | None, like: ImageSet | None, missing: list[str], notes: list[str]
) -> ImageSet:
    """Load a set, or return black images as ``plan.expect`` describes them if it does not exist."""
    expected = plan.expect.get(name, {})
    if path is not None and (path == "digits" or _exists(path)):
        if like is None:
            data = load_images(path, plan.size, classes=plan.classes)
        else:
            data = load_target(path, plan.size, plan.classes, like=like)
        there = {"train": len(data.x_train), "test": len(data.x_test), "channels": data.channels}
        there |= {"size": data.size[0], "classes": data.classes}
        wrong = [f"{key} {expected[key]}, got {there[key]}" for key in expected if expected[key] != there[key]]
        if wrong:
            notes.append(f"{name}: the file of the study expects {', '.join(wrong)}")
        return data
    where = "data" if name == SOURCE else f"target {name}"
    if path is None and not expected:
        raise InputError(f"{where}: expected it in the file of the study or as --data")
    missing.append(f"{where}: {path} does not exist" if path is not None else f"{where}: not named yet (--data)")
    needed = {"train", "test", "classes"} | ({"channels", "size"} if like is None else set())
    if lacks := sorted(needed - set(expected)):
        raise InputError(f"{where}: {path} does not exist, and [expect] does not give its {', '.join(lacks)}")
    side = expected.get("size", 1)
    height, breadth, channels = (side, side, expected["channels"]) if like is None else (*like.size, like.channels)

    def blank(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, height, breadth, channels)
        return x, torch.arange(count) % expected["classes"]

    (x_train, y_train), (x_test, y_test) = blank(expected["train"]), blank(expected["test"])
    return ImageSet(str(name), x_train, x_test, y_train, y_test)


def _teacher(plan: Plan, images: ImageSet, missing: list[str]) -> _Stand:
    settings = plan.rows[0].settings if plan.rows else None
    own = [row.teacher for row in plan.rows if row.teacher is not None]
    for name in dict.fromkeys([plan.teacher, *map(str, own)]):
        if name is not None and _exists(name):
            teacher = Teacher.named(name, Preprocessing((0.5,) * images.channels, (0.25,) * images.channels))
            dimension = teacher.represent(images.x_train[:2].contiguous()).shape[1]
            return _Stand(dimension, teacher.module, teacher)
        if name is not None or not own:
            missing.append(f"teacher: {name or 'not named yet (--teacher)'} does not exist (ssdd teacher writes it)")
    assert settings is not None
    module = new_backbone(images, settings.teacher)
    return _Stand(module.dimension, module)


def _check_distilled(row: Row, images: ImageSet, teacher: _Stand) -> None:
    try:
        if teacher.teacher is not None and row.teacher is None:
            check_before_training(images, row.settings, teacher.teacher)
        else:
            check_before_training(images, row.settings)
    except InputError as error:
        raise InputError(f"row {row.name}: {error}") from None


def _missing_cells(row: Row, plan: Plan, found: Mapping[tuple[str, int, str], object]) -> int:
    return sum((row.name, seed, name) not in found for seed in range(row.seeds) for name in plan.sets)


def _estimate(
    row: Row,
    plan: Plan,
    images: ImageSet,
    targets: Mapping[str, ImageSet],
    classifiers: Mapping[str, Classifier],
    teacher: _Stand,
    missing: int,
) -> RowEstimate:
    if row.source == "teacher":
        return RowEstimate(row, 0, 0, 0, 0, 0.0, 0.0, missing)
    s = row.settings
    parameters, _, forward = _network(s.student, *_shape(images))
    count, size, made = _pairs(row, images, teacher)
    cost = float(s.pretrain.steps * min(s.pretrain.batch, count) * (1 + BACKWARD) * forward)
    for name in plan.sets:
        data = images if name == SOURCE else targets[name]
        if s.evaluate.labels or (name == SOURCE and count):
            cost += (len(data.x_train) + len(data.x_test)) * forward
        if s.finetune.share:
            batch = min(s.finetune.batch, len(data.x_train))
            cost += steps_for(data, s.finetune) * batch * (1 + BACKWARD) * forward + len(data.x_test) * forward
        if row.kd and name in plan.classifiers:
            cost += _kd_cost(s, count, forward, classifiers.get(name), images, len(data.x_test))
    steps = s.pretrain.steps if count else 0
    return RowEstimate(row, parameters, count, size, steps, made, cost, missing)


def _kd_cost(
    s: Settings, count: int, forward: int, classifier: Classifier | None, images: ImageSet, tested: int
) -> float:
    """Return the multiply-adds of a target-data-free distillation and its test."""
    config = s.classifier
    if classifier is not None:
        guide = count_multiply_adds(classifier.module, *_shape(images))
    else:
        like = replace(s.student, model=config.model, width=config.width, stem=config.stem)
        guide = _network(like, *_shape(images))[2]
    seen = s.kd.epochs * (count or s.distill.images)
    return float(seen * ((1 + BACKWARD) * forward + guide) + tested * (forward + guide))


def _pairs(row: Row, images: ImageSet, teacher: _Stand) -> tuple[int, int, float]:
    """Return the number of a row's pairs, their bytes, and the multiply-adds of making them."""
    origin, shape, n = row.origin, (images.channels, *images.size), len(images.x_train)
    d = origin.settings.distill
    if origin.source == "nothing":
        return 0, 0, 0.0
    if origin.source == "imported":
        assert origin.file is not None
        pairs = DistilledSet.load(origin.file)
        return len(pairs), pairs.bytes, 0.0
    _, dimension, forward = _network(origin.settings.student, *_shape(images))
    made = 0.0
    if origin.source == "full set":
        count, outputs = n, teacher.dimension
    elif origin.distilled or origin.source == "recomputed":
        outputs = target_size(d, images, teacher.dimension)
        count = image_count(d, images, outputs)
        made = float(d.steps * d.networks * _step_cost(dimension, forward, count, min(d.batch, n), outputs))
        made = made if origin.distilled else 0.0
    else:
        count, outputs = d.images, teacher.dimension if origin.targets == "teacher" else 1
        made = 3.0 * n * (2 + BACKWARD) * forward if origin.source == "high-loss" else 0.0
    return count, 4 * count * (math.prod(shape) + outputs), made if row is origin else 0.0


def _shape(images: ImageSet) -> tuple[int, tuple[int, int]]:
    return images.channels, images.size


@cache
def _network(config: StudentConfig, channels: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the weights, features and multiply-adds per image of a network."""
    network = student(config, channels, size, 1)
    return count_parameters(network), network.dimension, count_multiply_adds(network, channels, size)


def _step_cost(dimension: int, forward: int, count: int, batch: int, outputs: int) -> float:
    """Return the multiply-adds of an outer step: X_s forward and backward, the real batch forward, one training step of
    the pool, and the regression in its low-rank order."""
    networks = 2 * count * (1 + BACKWARD) * forward + batch * forward
    regression = count**2 * dimension / 2 + count**3 / 3 + 6 * dimension * outputs * (count + batch)
    return networks + regression
