"""Teachers: a network trained here (Barlow Twins), one the user brings, or representations from a file."""

from ..data import cache_directory
from .barlow import train_teacher
from .representations import Representations, read_representations, represent
from .teacher import Teacher

__all__ = ["Representations", "Teacher", "cache_directory", "read_representations", "represent", "train_teacher"]
