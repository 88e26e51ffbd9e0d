"""Teachers: a network trained here (Barlow Twins, SimCLR, BYOL), the user's own network, or representations from a
file."""

from ..data import cache_directory
from .representations import Representations, read_representations, represent, write_representations
from .teacher import Represent, Teacher
from .training import new_backbone, train_teacher
from .views import Views

__all__ = [
    "Represent",
    "Representations",
    "Teacher",
    "Views",
    "cache_directory",
    "read_representations",
    "represent",
    "train_teacher",
    "new_backbone",
    "write_representations",
]
