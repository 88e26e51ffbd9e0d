"""Output for people: run directory, log, progress, tables, pictures, reports, and the demonstration."""

from .demonstration import demo, keep_partial
from .directory import (
    DEMO,
    EVENTS,
    MARK,
    check_directory,
    check_writable,
    new_directory,
    new_file,
    own_directory,
    resume_directory,
    write_json,
)
from .html import FILE as REPORT
from .html import try_report, write_report
from .information import info
from .log import JsonLines, both
from .material import keep_material, keep_study_material
from .page import write_page
from .pictures import contact_sheet, coverage, draw_each, images_over_steps, loss_curves
from .progress import Display
from .tables import comparisons, labels_per_class, legend, markdown, sentences, table, worth_little
from .tensorboard import FOLDER as TENSORBOARD
from .tensorboard import TensorBoard, check_tensorboard

__all__ = [
    "TENSORBOARD",
    "TensorBoard",
    "check_tensorboard",
    "check_writable",
    "DEMO",
    "EVENTS",
    "MARK",
    "REPORT",
    "Display",
    "JsonLines",
    "both",
    "comparisons",
    "contact_sheet",
    "coverage",
    "demo",
    "draw_each",
    "images_over_steps",
    "info",
    "keep_material",
    "keep_study_material",
    "keep_partial",
    "labels_per_class",
    "legend",
    "loss_curves",
    "markdown",
    "check_directory",
    "new_directory",
    "new_file",
    "own_directory",
    "sentences",
    "table",
    "try_report",
    "resume_directory",
    "write_json",
    "write_page",
    "worth_little",
    "write_report",
]
