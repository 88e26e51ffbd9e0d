"""What a distilled set is worth: pre-training on it, representation error, probes and fine-tuning."""

from ..models import representation_error
from .cells import Cell, evaluate, evaluate_on, evaluate_teacher, measure, pretrained, probes
from .finetuning import finetune
from .measures import labelled_rows, probe, standardise, why_no_probe
from .pretraining import pretrain, recipe_of, save_backbone

__all__ = [
    "Cell",
    "evaluate",
    "evaluate_on",
    "evaluate_teacher",
    "finetune",
    "labelled_rows",
    "measure",
    "pretrain",
    "pretrained",
    "probe",
    "probes",
    "recipe_of",
    "representation_error",
    "save_backbone",
    "standardise",
    "why_no_probe",
]
