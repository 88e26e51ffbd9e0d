"""Distillation: a few images and their targets, learned from many images and a teacher, or their labels."""

from .checks import check, check_before_training, needs_teacher, target_size
from .choice import choose_images
from .job import Job
from .loop import Distillation, distill
from .objective import total_variation
from .storage import image_count

__all__ = [
    "Distillation",
    "Job",
    "check",
    "check_before_training",
    "choose_images",
    "distill",
    "image_count",
    "needs_teacher",
    "target_size",
    "total_variation",
]
