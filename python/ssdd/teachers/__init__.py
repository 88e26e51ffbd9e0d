"""Teachers: a network trained here (Barlow Twins, SimCLR, BYOL), the user's own network, or representations from a
file.

Classifiers are the teachers of target-data-free distillation.
"""

from ..data import cache_directory
from .classifier import Classifier, check_labels, train_classifier
from .kd import check_kd, distil_knowledge
from .representations import Representations, read_representations, represent, write_representations
from .teacher import Represent, Teacher
from .training import new_backbone, train_teacher
from .views import Views

__all__ = [
    "Classifier",
    "Represent",
    "Representations",
    "Teacher",
    "Views",
    "cache_directory",
    "check_kd",
    "check_labels",
    "distil_knowledge",
    "read_representations",
    "represent",
    "train_classifier",
    "train_teacher",
    "new_backbone",
    "write_representations",
]
