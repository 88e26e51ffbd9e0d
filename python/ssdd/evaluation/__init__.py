"""How good a distilled set is: pre-training on it, representation error, linear probes and fine-tuning."""

from ..models import representation_error
from .cells import Cell, evaluate, evaluate_on, evaluate_teacher, measure, pretrain_new, probes
from .finetuning import check_targets, finetune, steps_for, why_no_transfer
from .measures import labelled_rows, nearest_neighbours, probe, read_out, standardise, why_no_probe
from .pretraining import pretrain, recipe_of, save_backbone
from .realism import Space, measure_realism

__all__ = [
    "Cell",
    "Space",
    "check_targets",
    "evaluate",
    "evaluate_on",
    "evaluate_teacher",
    "finetune",
    "labelled_rows",
    "measure",
    "measure_realism",
    "pretrain",
    "pretrain_new",
    "probe",
    "probes",
    "recipe_of",
    "representation_error",
    "save_backbone",
    "nearest_neighbours",
    "read_out",
    "standardise",
    "steps_for",
    "why_no_probe",
    "why_no_transfer",
]
