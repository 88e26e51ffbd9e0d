"""The demonstration: the study of demo.toml, with a teacher that is trained for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..checkpoint import fingerprint
from ..config import InputError, Report, Settings, preset, silent
from ..data import ImageSet, load_images
from ..distillation import check_before_training
from ..evaluation import why_no_probe
from ..teachers import Representations, Teacher, represent, train_teacher
from .fill import Study, TeacherPair, fill_study
from .plan import Plan, Row, read_plan
from .store import CELLS, SOURCE, Cells
from .workers import Task, run_tasks

FILE = Path(__file__).with_name("demo.toml")


@dataclass(frozen=True)
class Demonstration:
    """What is demonstrated on which images. Raises :class:`InputError` if its parts do not fit together."""

    data: ImageSet = field(default_factory=lambda: load_images("digits"))
    settings: Settings = field(default_factory=lambda: preset("digits"))
    seeds: int = 5
    """How many: 0, 1, ..."""
    teacher: Teacher | None = None
    """A network of yours (default: one is trained)."""
    representations: Representations | None = None
    """Of a teacher that is not at hand, in place of any."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds: expected a whole number from 1, got {self.seeds}")
        if self.teacher is not None and self.representations is not None:
            raise InputError("teacher, representations: expected one of the two")
        if not self.settings.distill.steps:
            raise InputError("steps: expected at least 1, got 0")
        check_before_training(self.data, self.settings, self.teacher, self.representations)

    def plan(self) -> Plan:
        """The rows of demo.toml that can be computed, with these settings and seeds."""
        plan = read_plan(FILE, settings=self.settings, seeds=self.seeds)
        without_test = self.representations is not None and self.representations.test is None
        rows = (self._row(row) for row in plan.rows if not (row.source == "teacher" and without_test))
        return replace(plan, title=self.data.name, rows=tuple(rows))

    def _row(self, row: Row) -> Row:
        """``evaluate.random_targets`` says what the random images are trained to give."""
        targets = self.settings.evaluate.random_targets
        return row if row.source != "random" else replace(row, name=f"random + {targets}", targets=targets)

    def teach(self, folder: Path, report: Report = silent) -> TeacherPair:
        """The teacher, trained here and kept in ``folder`` if none was given, and the representations of all images.

        A set that no probe can be made on is reported as ``{"event": "warning", "message"}`` before that.
        """
        if why := why_no_probe(self.data):
            report({"event": "warning", "message": why})
        if self.representations is not None:
            return self.teacher, self.representations
        arguments = (self.data, self.settings, folder, self.teacher)
        [pair] = run_tasks([Task("teacher", _teach, arguments)], 1, report)
        return pair

    def fill(self, pair: TeacherPair, folder: Path, workers: int, report: Report = silent) -> Study:
        """Compute the cells, in ``folder``/cells.jsonl; what is kept on the way is in ``folder``/work."""
        teacher, representations = pair
        key = fingerprint(representations.train) if teacher is None else teacher.key()
        cells = Cells(folder / CELLS, {SOURCE: self.data.fingerprint, "teacher": key})
        study = Study(self.data, {None: pair}, cells, folder / "work")
        fill_study(self.plan(), study, workers, report)
        return study


def _teach(
    data: ImageSet, settings: Settings, folder: Path, teacher: Teacher | None, report: Report = silent
) -> tuple[Teacher, Representations]:
    if teacher is None:
        teacher = train_teacher(data, settings.teacher, report)
        teacher.save(folder / "teacher.safetensors")
    return teacher, represent(teacher, data)
