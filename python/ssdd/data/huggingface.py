"""Image sets of the Hugging Face hub, or that its library saved: ``hf:NAME``, ``hf:NAME:CONFIG``, ``hf:FOLDER``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import InputError
from .layout import count
from .pictures import is_grey, size_of, to_pixels
from .sets import ImageSet, hold_out, unseen
from .stream import assembled

PREFIX = "hf:"
TEST = ("test", "validation", "valid", "val")
LABELS = ("label", "labels", "fine_label")


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError("data: hf:... needs the library `datasets`; install it with: pip install 'ssdd[hf]'") from None
    return datasets


def _open(name: str) -> Any:
    library = _library()
    place, _, configuration = name.partition(":")
    try:
        if Path(place).is_dir() and (
            (Path(place) / "dataset_dict.json").is_file() or (Path(place) / "state.json").is_file()
        ):
            return library.load_from_disk(place)
        # Never a script of the set's author: trust_remote_code stays at its default, off.
        return library.load_dataset(place, configuration or None)
    except Exception as error:  # a library of many parts: any of them may raise, and a user reads only the message
        raise InputError(f"data: Hugging Face set {name!r} cannot be read ({type(error).__name__}: {error})") from None


def _columns(part: Any, name: str, library: Any) -> tuple[str, str | None]:
    images = [key for key, kind in part.features.items() if isinstance(kind, library.Image)]
    if len(images) != 1:
        raise InputError(f"data: {name}: expected one column of images, got {images or list(part.features)}")
    classes = [key for key, kind in part.features.items() if isinstance(kind, library.ClassLabel)]
    named = [key for key in LABELS if key in part.features and key in (classes or part.features)]
    return images[0], (named or classes or [None])[0]


def read_huggingface(source: str, size: int | None, memory: int) -> ImageSet:
    """The training part and one of test, validation; where there is none, one image in five is held out."""
    name = source.removeprefix(PREFIX)
    library, found = _library(), _open(name)
    parts = dict(found) if isinstance(found, library.DatasetDict) else {"train": found}
    if "train" not in parts:
        raise InputError(f"data: {name}: expected a part called train, got {', '.join(parts)}")
    image, label = _columns(parts["train"], name, library)
    # Where the hub hides the labels of a test part they are all -1: another part then serves better.
    held = sorted((key for key in TEST if key in parts), key=lambda key: _hidden(parts[key], label))
    test = held[0] if held else None

    def read(which: str) -> tuple[Tensor, Tensor | None]:
        part = parts[which]
        if not len(part):
            raise InputError(f"data: {name}: the part {which} is empty")
        channels, first = (1 if all(map(is_grey, _column(part, image, f"{name}: {which}"))) else 3), part[0][image]
        height, width = (size, size) if size else size_of(first)
        # The fingerprint is the library's own name for "this table after these operations".
        key = f"hf upright {part._fingerprint} {image} {size}"
        pixels = _pixels(part, image, size, channels, (height, width), f"{name}: {which}")
        stored = assembled((len(part), height, width, channels), pixels, key, memory)
        labels = None
        if label is not None and not _hidden(part, label):
            given = list(part[label])
            if not all(type(y) is int for y in given):
                strange = next(y for y in given if type(y) is not int)
                raise InputError(f"data: {name}: {which}: {label}: expected whole numbers, got {strange!r}")
            labels = torch.tensor(given)
        return stored, labels

    x, y = read("train")
    short = name.split("/")[-1].partition(":")[0]
    others = [f"{key} (its labels are withheld)" if key in held and _hidden(parts[key], label) else str(key)
              for key in parts if key not in ("train", test)]  # fmt: skip
    left = f"; parts not read: {', '.join(others)}" if others else ""
    of = "without classes" if y is None else f"of {count(len(y.unique()), 'class')} (column {label})"
    if test is None:
        found = f"{len(x):,} images {of} from the part train, one in five of them held out for testing"
        return hold_out(short, x, y, memory=memory, summary=f"{short}: {found}{left}")
    x_test, y_test = read(test)
    unlabelled = " without labels" if y is not None and y_test is None else ""
    found = f"{len(x):,} training images {of} from the part train, {len(x_test):,} test images{unlabelled} from {test}"
    return ImageSet(short, x, x_test, y, y_test, summary=f"{short}: {found}{unseen(y, y_test)}{left}")


def _hidden(part: Any, label: str | None) -> bool:
    """Whether the part's labels are withheld: all -1."""
    return label is not None and label in part.features and set(part[label]) == {-1}


def _column(part: Any, column: str, where: str) -> Iterator[Any]:
    """The PIL images of a column."""
    rows = iter(part.select_columns([column]))
    for i in range(len(part)):
        try:
            found = next(rows)[column]
        except (OSError, ValueError) as error:
            raise InputError(f"data: {where}: image {i} cannot be read ({error})") from None
        if found is None:
            raise InputError(f"data: {where}: image {i} is missing")
        yield found


def _pixels(
    part: Any, column: str, size: int | None, channels: int, sides: tuple[int, int], where: str
) -> Iterator[np.ndarray]:
    for i, image in enumerate(_column(part, column, where)):
        try:
            pixels = to_pixels(image, size, channels)
        except (OSError, ValueError) as error:
            raise InputError(f"data: {where}: image {i} cannot be read ({error})") from None
        if pixels.shape[:2] != sides:
            (h, w), (h0, w0) = pixels.shape[:2], sides
            raise InputError(f"data: {where}: mixed sizes: image 0 is {w0}x{h0}, image {i} is {w}x{h}; "
                             "give --size to resize them all")  # fmt: skip
        yield pixels
