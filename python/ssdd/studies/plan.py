"""The plan of a study: its rows, seeds and sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import METHOD_NAMES, SELECTION_NAMES, Settings

SOURCE = "source"
"""The name of the set that is distilled, beside the names of the targets."""

_STAGES: dict[str, tuple[str, ...]] = {
    "nothing": ("student",),
    **dict.fromkeys(SELECTION_NAMES, ("student", "pretrain")),
    "full set": ("student", "pretrain"),
    **dict.fromkeys(METHOD_NAMES, ("student", "pretrain", "distill")),
    "recomputed": ("student", "pretrain", "distill"),
    "reused": ("student", "pretrain"),
    "imported": ("student", "pretrain"),
    "teacher": (),
}
"""Source of a row's pre-training -> the stages whose settings change its numbers, besides those of the measurements.

"recomputed": the images of another row, with the teacher's representations of them as new targets. "reused": the pairs
of another row, such as for another network. "imported": pairs from a file. "teacher": the teacher itself is measured.
The names of :mod:`ssdd.selection`: real images with their representations. The methods of distillation: a distilled
set.
"""

SOURCES = tuple(_STAGES)
_PLACES = {"nothing": 0, **dict.fromkeys(SELECTION_NAMES, 1), "full set": 3, "teacher": 4}
Targets = Literal["teacher", "labels"]


def is_selected(source: str) -> bool:
    """Return True for real images that a selection chose. Distilled sets are compared with these rows."""
    return source in SELECTION_NAMES


def is_distilled(source: str) -> bool:
    """Return True for a method of distillation."""
    return source in METHOD_NAMES


def place_in_table(source: str) -> int:
    """Return a number to sort rows by: no pre-training, selections, distilled sets, the full set, the teacher."""
    return _PLACES.get(source, 2)


@dataclass(frozen=True)
class Row:
    """One row of the table: a method with its settings."""

    name: str
    source: str
    """What the network is pre-trained on: one of ``SOURCES``."""
    settings: Settings
    seeds: int
    of: Row | None = None
    """For "recomputed": the row whose images are used; for "reused": the row whose pairs are used."""
    later: bool = False
    """True if all other rows come first, with all their seeds."""
    teacher: Path | None = None
    """A teacher for this row, in place of the study's."""
    targets: Targets = "teacher"
    """Targets of selected images: the teacher's representations, or their labels."""
    file: Path | None = None
    """For "imported": the file of the pairs."""
    group: str = ""
    """Name of the variant that this row belongs to; "" for the rows of the file itself."""
    against: str | None = None
    """Name of another row that the page compares this one with, beside the baselines."""
    kd: bool = False
    """True if the row's networks also learn from the classifiers of the study (target-data-free distillation)."""

    @property
    def origin(self) -> Row:
        """The row that makes the pairs: this one, unless it reuses those of another row."""
        return self.of if self.source == "reused" and self.of is not None else self

    @property
    def selected(self) -> bool:
        """:func:`is_selected` of the row's source."""
        return is_selected(self.source)

    @property
    def distilled(self) -> bool:
        """:func:`is_distilled` of the row's source."""
        return is_distilled(self.source)

    @property
    def slug(self) -> str:
        """The row's name, as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower().replace("'", "")).strip("-")

    @property
    def relevant(self) -> dict[str, Any]:
        """The settings that change this row's numbers. Other settings can change without making its cells invalid."""
        every = asdict(self.settings)
        kd = ("kd",) if self.kd else ()
        content = {stage: every[stage] for stage in (*_STAGES[self.source], "evaluate", "finetune", *kd)}
        content["evaluate"].pop("random_targets")  # in a study, each row has its own targets
        if self.selected:
            content["distill"] = {"images": self.settings.distill.images}
        if self.targets != "teacher":
            content["targets"] = self.targets
        if self.source == "reused":
            origin = self.origin.relevant
            content["pairs"] = {key: origin[key] for key in ("student", "distill", "targets") if key in origin}
            content["pairs"]["from"] = self.origin.source
        return content


@dataclass(frozen=True)
class Plan:
    """The content of a study's file, from :func:`read_plan`. A key that the file does not have is None."""

    title: str
    """The title of the page."""
    rows: tuple[Row, ...]
    """The rows of the table, in order."""
    data: str | Path | None = None
    """The images to distil."""
    teacher: str | None = None
    """A name that :meth:`ssdd.Teacher.named` knows."""
    targets: Mapping[str, str | Path] = field(default_factory=dict)
    """Name -> images of a target set."""
    size: int | None = None
    """Pixels per side that images of folders are resized to, those of targets included (default: no resizing)."""
    classes: str | None = None
    """Classes of a folder, "folders" or "none" (default: decided from the folder)."""
    teacher_prefix: str | None = None
    """The first words of the names of the teacher's weights (default: decided from the file)."""
    classifiers: Mapping[str, str] = field(default_factory=dict)
    """Name of a target -> a name that :meth:`ssdd.Classifier.named` knows: the teacher of target-data-free
    distillation, which is then measured on that target."""
    measure_source: bool = True
    """False if no cell is computed for the source itself."""
    layout: str = ""
    """What the folders of the data must look like, in words."""
    expect: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """"source" or the name of a target -> its channels, size, images and classes, for a dry run without the data."""

    @property
    def sets(self) -> list[str]:
        """Names of the sets that cells are computed for."""
        return [*([SOURCE] if self.measure_source else []), *self.targets]

    def order(self) -> list[tuple[Row, int]]:
        """Return (row, seed) in the order of computing: seed 0 of all rows first, so that the table is useful early.

        Rows marked "later" follow one by one, each with all its seeds. A study that is stopped then has complete rows.
        """
        seeds = range(max(row.seeds for row in self.rows))
        first = [(r, s) for s in seeds for r in self.rows if s < r.seeds and not r.later]
        return first + [(r, s) for r in self.rows if r.later for s in range(r.seeds)]
