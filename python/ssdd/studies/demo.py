"""The demonstration: the study of demo.toml, with a teacher that is trained first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..checkpoint import Checkpoints, fingerprint
from ..config import InputError, Report, Settings, preset, silent
from ..data import CPU, ImageSet, load_images
from ..distillation import check_before_training
from ..evaluation import why_no_probe
from ..teachers import Representations, Teacher, represent, train_teacher
from .files import read_plan
from .fill import Study, TeacherPair, fill_study
from .plan import SOURCE, Plan, Row
from .store import CELLS, Cells
from .workers import Task, run_tasks

FILE = Path(__file__).with_name("demo.toml")
TEACHER = "teacher.safetensors"
"""The file of the teacher in the demonstration's folder."""


@dataclass(frozen=True)
class Demonstration:
    """The parts of a demonstration. Raises :class:`InputError` if they do not fit together."""

    data: ImageSet = field(default_factory=lambda: load_images("digits"))
    """The images. Default: digits."""
    settings: Settings = field(default_factory=lambda: preset("digits"))
    """The settings. Default: the preset digits."""
    seeds: int = 5
    """Number of seeds: 0, 1, ..."""
    teacher: Teacher | None = None
    """Your own network. Default: a teacher is trained."""
    representations: Representations | None = None
    """Representations of a teacher that is not available as a network. Default: none."""
    device: torch.device = CPU
    """Where networks train and run. Default: the CPU."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds: expected a whole number from 1, got {self.seeds}")
        if self.teacher is not None and self.representations is not None:
            raise InputError("teacher, representations: expected one of the two")
        if not self.settings.distill.steps:
            raise InputError("steps: expected at least 1, got 0")
        check_before_training(self.data, self.settings, self.teacher, self.representations)

    def plan(self) -> Plan:
        """Return the rows of demo.toml that can be computed, with these settings and seeds."""
        plan = read_plan(FILE, settings=self.settings, seeds=self.seeds)
        without_test = self.representations is not None and self.representations.test is None
        rows = (self._row(row) for row in plan.rows if not (row.source == "teacher" and without_test))
        return replace(plan, title=self.data.name, rows=tuple(rows))

    def _row(self, row: Row) -> Row:
        """Set the targets of the random images to ``evaluate.random_targets``."""
        targets = self.settings.evaluate.random_targets
        return row if row.source != "random" else replace(row, name=f"random + {targets}", targets=targets)

    def teach(self, folder: Path, report: Report = silent) -> TeacherPair:
        """Return the teacher and the representations of all images. A teacher that is trained here is saved in
        ``folder``, and read from there if it is: the training continues after a stop.

        If no probe can be made on the set, this is reported first as ``{"event": "warning", "message"}``.
        """
        if why := why_no_probe(self.data):
            report({"event": "warning", "message": why})
        if self.representations is not None:
            return self.teacher, self.representations
        file, own = folder / TEACHER, self.teacher
        if own is None and file.is_file():
            own = Teacher.named(str(file), self.data.preprocessing)
        arguments = (self.data, self.settings, folder, own, self.device)
        [pair] = run_tasks([Task("teacher", _teach, arguments)], 1, report)
        return pair

    def fill(self, pair: TeacherPair, folder: Path, workers: int, report: Report = silent) -> Study:
        """Compute the cells into ``folder``/cells.jsonl; intermediate files are in ``folder``/work."""
        teacher, representations = pair
        key = fingerprint(representations.train) if teacher is None else teacher.key()
        cells = Cells(folder / CELLS, {SOURCE: self.data.fingerprint, "teacher": key})
        study = Study(self.data, {None: pair}, cells, folder / "work", device=self.device)
        fill_study(self.plan(), study, workers, report)
        return study


def _teach(
    data: ImageSet,
    settings: Settings,
    folder: Path,
    teacher: Teacher | None,
    device: torch.device,
    report: Report = silent,
) -> tuple[Teacher, Representations]:
    if teacher is None:
        checkpoints = Checkpoints(folder / "work" / "checkpoints", "teacher", report=report, device=device)
        teacher = train_teacher(data, settings.teacher, report, checkpoints, device)
        teacher.save(folder / TEACHER)
        checkpoints.clear()
    teacher.to(device)
    return teacher, represent(teacher, data)
