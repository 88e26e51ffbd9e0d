"""From what a user names to an :class:`ImageSet`."""

from __future__ import annotations

from pathlib import Path

from ..config import InputError
from .cifar import is_cifar, read_cifar
from .digits import digits
from .folder import read_folder
from .huggingface import PREFIX, read_huggingface
from .npz import read_npz
from .sets import ImageSet
from .stream import MEMORY


def load_images(source: str | Path = "digits", size: int | None = None, memory: int = MEMORY) -> ImageSet:
    """Images as uint8, by name.

    ``source``: ``"digits"`` (embedded); a folder of images (``train/`` and ``test/``, Tiny-ImageNet's form, or one
    part); the folder of CIFAR-10's or CIFAR-100's python files; an ``.npz`` file; ``"hf:NAME"`` for a set of the
    Hugging Face hub, or a folder that its library saved. ``size``: resize images to this many pixels a side
    (antialiased, aspect ratio not kept). A part of more than ``memory`` bytes is mapped from disk, not read.
    Nothing in a file is executed. Raises :class:`InputError` with what is wrong and where.
    """
    name, path = str(source), Path(source)
    if name.startswith(PREFIX):
        return read_huggingface(name, size, memory)
    if name != "digits" and path.is_dir() and not is_cifar(path):
        return read_folder(path, size, memory)
    if size is not None:
        raise InputError(f"size: only a folder of images or a Hugging Face set is resized, got data {path.name!r}")
    if name == "digits":
        return digits()
    if path.is_dir():
        return read_cifar(path)
    if path.suffix == ".npz":
        return read_npz(path, memory)
    raise InputError(f"data: expected 'digits', a folder of images, an .npz file or hf:NAME, got {name!r}")
