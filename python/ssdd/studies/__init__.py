"""Studies: tables of methods x seeds x sets, computed cell by cell."""

from .baselines import baseline
from .comparison import Comparison, compare, mean_and_error
from .demo import Demonstration
from .fill import Study, fill_study, missing_cells, read_snapshots
from .plan import Plan, Row, is_distilled, is_selected, place_in_table, read_plan
from .run import run_study
from .store import CELLS, SOURCE, Cells, read_cells
from .workers import Task, run_tasks

__all__ = [
    "CELLS",
    "SOURCE",
    "Cells",
    "Comparison",
    "Demonstration",
    "Plan",
    "Row",
    "Study",
    "Task",
    "baseline",
    "compare",
    "fill_study",
    "mean_and_error",
    "is_distilled",
    "is_selected",
    "missing_cells",
    "place_in_table",
    "read_cells",
    "read_plan",
    "read_snapshots",
    "run_study",
    "run_tasks",
]
