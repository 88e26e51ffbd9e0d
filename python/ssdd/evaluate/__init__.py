"""What a distilled set is worth: pre-training on it, errors and probes, and comparisons over seeds."""

from .cells import SOURCE, Cells, read_cell
from .compare import Comparison, compare, mean_and_error
from .fill import Filling, fill
from .finetune import finetune
from .measures import labelled_rows, probe, representation_error
from .plan import Plan, Row, read_plan
from .pretrain import pretrain
from .ready import ready
from .rows import Cell, evaluate, evaluate_teacher
from .study import KMEANS, KRR_ST, NO_PRETRAINING, RANDOM, TEACHER, Study, Task, distil_seed, other_rows, run_tasks

__all__ = [
    "SOURCE",
    "Cells",
    "Filling",
    "Plan",
    "Row",
    "fill",
    "finetune",
    "read_cell",
    "read_plan",
    "ready",
    "KMEANS",
    "KRR_ST",
    "NO_PRETRAINING",
    "RANDOM",
    "TEACHER",
    "Study",
    "Task",
    "distil_seed",
    "other_rows",
    "run_tasks",
    "Cell",
    "Comparison",
    "compare",
    "evaluate",
    "evaluate_teacher",
    "labelled_rows",
    "mean_and_error",
    "pretrain",
    "probe",
    "representation_error",
]
