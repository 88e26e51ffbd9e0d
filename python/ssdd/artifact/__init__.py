"""The product, its file, and what it is exchanged with: nothing here needs the code that distils."""

from .export import FORMS, export
from .files import read_safetensors, write_atomically
from .pairs import FORMAT, DistilledSet
from .preprocessing import Preprocessing
from .published import read_published

__all__ = [
    "FORMAT",
    "FORMS",
    "DistilledSet",
    "Preprocessing",
    "export",
    "read_published",
    "read_safetensors",
    "write_atomically",
]
