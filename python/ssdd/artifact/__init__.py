"""The distilled set, its file, and the forms of other tools; nothing here needs the code that distils."""

from .card import card_file, card_text, write_card
from .files import NO_ARRAY, flush_to_disk, read_safetensors, read_torch, why_no_array, write_atomically
from .forms import EXPORT_FORMS, ddranking_constants, export, read_scores
from .hub import push
from .lock import LOCK, lock_folder, wait_for_lock
from .pairs import FORMAT, STORAGE_VERSION, DistilledSet
from .preprocessing import Preprocessing
from .published import MOST_CLASSES, read_labelled, read_published

__all__ = [
    "FORMAT",
    "EXPORT_FORMS",
    "LOCK",
    "MOST_CLASSES",
    "NO_ARRAY",
    "STORAGE_VERSION",
    "DistilledSet",
    "Preprocessing",
    "card_file",
    "card_text",
    "ddranking_constants",
    "export",
    "flush_to_disk",
    "lock_folder",
    "push",
    "read_labelled",
    "read_published",
    "read_safetensors",
    "read_scores",
    "read_torch",
    "wait_for_lock",
    "why_no_array",
    "write_atomically",
    "write_card",
]
