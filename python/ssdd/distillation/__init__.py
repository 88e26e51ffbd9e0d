"""KRR-ST: a few images and their target representations, learned from many images and a teacher."""

from .checks import check, check_before_training
from .job import Job
from .loop import Distillation, distill
from .objective import total_variation

__all__ = ["Distillation", "Job", "check", "check_before_training", "distill", "total_variation"]
