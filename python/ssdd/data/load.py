"""Loading an :class:`ImageSet` from the name that a user gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import InputError, Report, in_float32, silent
from .cifar import is_cifar, read_cifar
from .convert import convert_images
from .digits import digits
from .folder import read_folder
from .huggingface import PREFIX, read_huggingface
from .npz import read_npz
from .pictures import suffixes
from .sets import ImageSet
from .stream import MEMORY

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
"""Endings of packed folders, which are not read."""


@in_float32
def load_images(
    source: str | Path = "digits",
    size: int | None = None,
    memory: int = MEMORY,
    classes: str | None = None,
    skip_unreadable: bool = False,
    report: Report = silent,
) -> ImageSet:
    """Load images by name, as uint8. Nothing in a file is executed.

    Args:
        source: "digits" (default, embedded); a folder of images (``train/`` and ``test/``, Tiny-ImageNet's form, or one
            part); the folder of CIFAR-10's or CIFAR-100's python files; an ``.npz`` file; "hf:NAME" for a set of the
            Hugging Face hub, or a folder that its library saved. A ``Path`` is always a file or folder: your own folder
            called digits is ``Path("digits")`` or ``"./digits"``.
        size: pixels per side that images are resized to (antialiased, aspect ratio not kept). Default: no resizing.
        memory: bytes; a larger part of the set is mapped from disk instead of read. Default 4 GiB.
        classes: for a folder, "folders" (every subfolder is a class; images beside them are left out) or "none".
            Default: decided from the folder.
        skip_unreadable: leave out files of a folder that cannot be decoded, and count them. Default: they are an error.
        report: receives ``{"event": "progress", "stage": "read", "step", "steps"}`` while a folder is decoded, if it
            has a true attribute ``moves``. Default: nothing is reported.

    Returns:
        The images; ``summary`` says what was found.

    Raises:
        InputError: naming the file and what is wrong, also if a folder is ambiguous.
    """
    name, path = str(source), Path(source)
    named = isinstance(source, str)  # a Path is never the name of a set
    embedded, hub = named and name == "digits", named and name.startswith(PREFIX)
    folder = _is_image_folder(source)
    if classes is not None and not folder and (path.exists() or embedded or hub):
        raise InputError(f"classes: only those of a folder of images can be chosen, got data {path.name!r}")
    if skip_unreadable and not folder and (path.exists() or embedded or hub):
        raise InputError(f"skip_unreadable: only files of a folder of images can be skipped, got data {path.name!r}")
    if hub:
        if name == PREFIX:
            raise InputError(f"data: expected hf:NAME, with the name of a set of the hub or a folder, got {name!r}")
        return read_huggingface(name, size, memory)
    if folder:
        return read_folder(path, size, memory, classes, skip_unreadable, report)
    expected = "expected 'digits', a folder of images, an .npz file or hf:NAME"
    if not name:
        raise InputError(f"data: {expected}, got an empty name")
    if not embedded and not path.exists():
        raise InputError(f"data: {name!r} does not exist; {expected}")
    if size is not None:
        raise InputError(f"size: only a folder of images or a Hugging Face set is resized, got data {path.name!r}")
    if embedded:
        data = digits()
        beside = f"{data.summary}; the folder of that name here is ./digits"
        return replace(data, summary=beside) if path.is_dir() else data
    if path.is_dir():
        return read_cifar(path)
    ending = path.suffix.lower()
    if ending == ".npz":
        return read_npz(path, memory)
    advice = "; give the folder of the images" if ending in suffixes() else ""
    advice = "; unpack it, and give the folder" if ending in ARCHIVES else advice
    raise InputError(f"data: {expected}, got {name!r}{advice}")


@in_float32
def load_target(
    source: str | Path,
    size: int | None = None,
    classes: str | None = None,
    skip_unreadable: bool = False,
    like: ImageSet | None = None,
    report: Report = silent,
) -> ImageSet:
    """Load one of several sets: :func:`load_images`, but options that do not apply are ignored.

    Args:
        source: the name of the set, as for :func:`load_images`.
        size: pixels per side, for folders and Hugging Face sets. Default: no resizing.
        classes: "folders" or "none", for folders. Default: decided from the folder.
        skip_unreadable: leave out files that cannot be decoded, for folders. Default: they are an error.
        report: as for :func:`load_images`.
        like: a set whose size and channels the images get (:func:`convert_images`). If its images are square, those of
            a folder may have several sizes, and ``size`` is not used. ``summary`` says what was changed. Default: the
            images stay as they are.
    """
    folder = _is_image_folder(source)
    resizable = folder or (isinstance(source, str) and source.startswith(PREFIX))
    note = ""
    if like is not None and resizable and like.size[0] == like.size[1] and size != like.size[0]:
        size = like.size[0]
        note = f"; resized to {size}x{size}"
    data = load_images(
        source,
        size if resizable else None,
        classes=classes if folder else None,
        skip_unreadable=skip_unreadable and folder,
        report=report,
    )
    if note:
        data = replace(data, summary=data.summary + note)
    return data if like is None else convert_images(data, like.channels, like.size)


def _is_image_folder(source: str | Path) -> bool:
    if isinstance(source, str) and (source == "digits" or source.startswith(PREFIX)):
        return False  # the name of a set, which a Path never is
    path = Path(source)
    return bool(str(source)) and path.is_dir() and not is_cifar(path)
