"""Teachers: a network trained here (Barlow Twins, SimCLR, BYOL), one of the user's, or representations from a file."""

from ..data import cache_directory
from .representations import Representations, read_representations, represent, write_representations
from .teacher import Represent, Teacher
from .training import train_teacher, untrained
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
    "untrained",
    "write_representations",
]
