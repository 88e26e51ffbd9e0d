"""Output for people: run directory, log, progress, tables, pictures, and the demonstration that writes all of them."""

from .demonstration import demo, keep_partial
from .directory import MARK, check_directory, new_directory, new_file, own_directory, resume_directory, write_json
from .information import info
from .log import JsonLines, both
from .page import write_page
from .pictures import contact_sheet, coverage, draw_each, images_over_steps, loss_curves
from .progress import Display
from .tables import comparisons, labels_per_class, markdown, sentences, table

__all__ = [
    "MARK",
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
    "keep_partial",
    "labels_per_class",
    "loss_curves",
    "markdown",
    "check_directory",
    "new_directory",
    "new_file",
    "own_directory",
    "sentences",
    "table",
    "resume_directory",
    "write_json",
    "write_page",
]
