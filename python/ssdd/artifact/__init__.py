"""The distilled set, its file, and the forms of other tools; nothing here needs the code that distils."""

from .card import card_file, card_text, write_card
from .files import (
    NO_ARRAY,
    check_writable,
    flush_to_disk,
    read_safetensors,
    read_torch,
    why_no_array,
    write_atomically,
)
from .forms import EXPORT_FORMS, ddranking_constants, export, read_scores
from .hub import push
from .lock import LOCK, lock_folder, wait_for_lock
from .pairs import FORMAT, STORAGE_VERSION, DistilledSet
from .preprocessing import Preprocessing
from .published import MOST_CLASSES, read_labelled, read_published
from .transforms import TRANSFORMS, check_transforms, transformed, versions_per_image

__all__ = [
    "FORMAT",
    "EXPORT_FORMS",
    "LOCK",
    "MOST_CLASSES",
    "NO_ARRAY",
    "STORAGE_VERSION",
    "TRANSFORMS",
    "DistilledSet",
    "Preprocessing",
    "card_file",
    "card_text",
    "check_transforms",
    "check_writable",
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
    "transformed",
    "versions_per_image",
    "wait_for_lock",
    "why_no_array",
    "write_atomically",
    "write_card",
]
