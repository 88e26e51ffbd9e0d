"""Studies: tables of methods x seeds x sets, computed cell by cell."""

from .baselines import baseline
from .comparison import Comparison, compare, mean_and_error
from .demo import Demonstration
from .estimate import RowEstimate, StudyEstimate, estimate_study
from .files import find_study, read_plan, shipped_studies
from .fill import Study, fill_study, missing_cells, read_snapshots
from .plan import SOURCE, Plan, Row, is_distilled, is_selected, place_in_table
from .run import run_study
from .store import CELLS, Cells, read_cells
from .workers import Task, run_tasks

__all__ = [
    "CELLS",
    "SOURCE",
    "Cells",
    "Comparison",
    "Demonstration",
    "Plan",
    "Row",
    "RowEstimate",
    "Study",
    "StudyEstimate",
    "Task",
    "baseline",
    "compare",
    "estimate_study",
    "fill_study",
    "find_study",
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
    "shipped_studies",
]
