"""Image sets of the Hugging Face hub, or saved by its library: ``hf:NAME``, ``hf:NAME:CONFIG``, ``hf:FOLDER``."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..artifact import MOST_CLASSES
from ..config import InputError
from .pictures import describe_deep, is_deep, is_grey, size_of, to_pixels, unreadable
from .sets import ImageSet, describe_unseen, hold_out
from .stream import assemble
from .tree import count, some

PREFIX = "hf:"
TRAIN = ("train", "training")
TEST = ("test", "validation", "valid", "val", "testing")
"""Names of parts, in any case; of test parts the first one with labels counts."""
LABELS = ("label", "labels", "fine_label", "class", "target")
"""Names of columns of labels, in any case; the first one that is there counts."""


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError("data: hf:... needs the library `datasets`; install it with: pip install 'ssdd[hf]'") from None
    return datasets


def _open(name: str) -> Any:
    library = _library()
    place, _, configuration = (name, "", "") if Path(name).is_dir() else name.partition(":")
    try:
        if Path(place).is_dir() and (
            (Path(place) / "dataset_dict.json").is_file() or (Path(place) / "state.json").is_file()
        ):
            return library.load_from_disk(place)
        # Never a script of the set's author: trust_remote_code stays at its default, off.
        return library.load_dataset(place, configuration or None)
    except Exception as error:  # the library can raise any exception; the user needs only its message
        raise InputError(f"data: Hugging Face set {name!r} cannot be read ({type(error).__name__}: {error})") from None


def _images(part: Any, where: str, library: Any) -> str:
    """Return the name of the part's one column of images."""
    columns = [key for key, kind in part.features.items() if isinstance(kind, library.Image)]
    if not columns:
        kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in part.features.items())
        raise InputError(
            f"data: {where}: expected a column of images, got {kinds}; make one of the feature "
            "datasets.Image, save_to_disk(FOLDER), and give hf:FOLDER"
        )
    if len(columns) > 1:
        raise InputError(
            f"data: {where}: expected one column of images, got {', '.join(columns)}; keep one of them with "
            "remove_columns(NAMES), save_to_disk(FOLDER), and give hf:FOLDER"
        )
    return columns[0]


def _label(part: Any, library: Any) -> str | None:
    """Return the name of the part's column of labels, if it has one."""
    classes = [key for key, kind in part.features.items() if isinstance(kind, library.ClassLabel)]
    named = [key for name in LABELS for key in classes or part.features if key.lower() == name]
    return (named or classes or [None])[0]


@dataclass
class Labels:
    """The content of a column of labels: one whole number or text per image, or ``why`` it has no classes.

    ``names``: the text of each number, if the column has it.
    """

    values: list[Any] | None = None
    names: list[str] | None = None
    why: str = ""

    def as_text(self) -> list[str] | None:
        """The labels as names of classes; None if they are numbers without names."""
        if self.values is None or isinstance(self.values[0], str):
            return self.values
        return None if self.names is None else [self.names[y] for y in self.values]


def _labels(part: Any, column: str) -> Labels:
    """Read a column of labels. Distillation needs none, so labels that cannot be used are reported and are no error."""
    values = [_plain(y) for y in part[column]]
    missing = sum(y is None or y == -1 or y != y for y in values)
    if missing == len(values):
        return Labels(why="its labels are withheld" if all(y == -1 for y in values) else "it holds no label")
    if missing:
        return Labels(why=f"{count(missing, 'image')} of {len(values):,} without a label")
    if all(isinstance(y, str) for y in values):
        return Labels(values)
    strange = [y for y in values if type(y) is not int or not 0 <= y < MOST_CLASSES]
    if strange:
        text = repr(strange[0])
        return Labels(why=f"{text if len(text) <= 40 else f'{text[:37]}...'} is no class")
    names = getattr(part.features[column], "names", None)
    return Labels(values, [_plain(name) or name for name in names] if names and max(values) < len(names) else None)


def _plain(value: Any) -> Any:
    """Return a label in the form in which equal labels are equal: whole numbers as int, text with composed accents and
    without spaces around it, None for empty text."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip() or None
    # A table with gaps stores whole numbers as floating point.
    return int(value) if isinstance(value, float | bool) and value == value // 1 else value


def _numbers(train: Labels, test: Labels) -> tuple[Tensor | None, Tensor | None, str]:
    """Number the classes of both parts alike. If those of the test part cannot be numbered, say why.

    Numbers stay as they are, unless the two columns name them differently. Texts get the order of the training column's
    names, or else alphabetical order. Texts that only the test part has come last.
    """
    if train.values is None or test.values is None:
        alone = train.values
        if alone is not None and isinstance(alone[0], str):
            number = {name: i for i, name in enumerate(sorted(set(alone)))}
            alone = [number[y] for y in alone]
        return None if alone is None else torch.tensor(alone), None, test.why
    numbers = not any(isinstance(part.values[0], str) for part in (train, test) if part.values)
    if numbers and not (train.names and test.names and train.names != test.names):
        return torch.tensor(train.values), torch.tensor(test.values), ""
    text, text_test = train.as_text(), test.as_text()
    if text is None or text_test is None:
        return *_numbers(train, Labels())[:2], "they are of another kind than those of the part train"
    first = train.names or sorted(set(text))
    number = {name: i for i, name in enumerate([*first, *sorted(set(text_test) - set(first))])}
    return torch.tensor([number[y] for y in text]), torch.tensor([number[y] for y in text_test]), ""


def _training_part(parts: Mapping[str, Any], name: str) -> str:
    for key in parts:
        if str(key).lower() in TRAIN:
            return key
    raise InputError(
        f"data: {name}: expected a part called train, got {', '.join(parts)}; save the part that is meant with "
        "save_to_disk(FOLDER), and give hf:FOLDER"
    )


def _not_read(parts: Mapping[str, Any], read: Mapping[str, str], label: str | None, why: Mapping[str, str]) -> str:
    """Return words on the columns and parts that are not read, for a summary.

    Args:
        parts: the parts of the set.
        read: the column of images of each part that is read; the first one is the training part.
        label: the column of labels.
        why: reasons why a part is not read, as far as there are any.
    """
    first, image = next(iter(read.items()))
    columns = [key for key in parts[first].features if key not in (label, image)]
    others = [f"{key} ({why[key]})" if why.get(key) else str(key) for key in parts if key not in read]
    words = [f"columns not read: {some(columns, 5)}"] if columns else []
    return "; ".join(words + ([f"parts not read: {', '.join(others)}"] if others else []))


def read_huggingface(source: str, size: int | None, memory: int) -> ImageSet:
    """Read the training part, and the test or validation part; without one, one image in five is held out.

    Labels that are no classes (lists, measurements, gaps) are left out, and the summary says so.
    """
    name = source.removeprefix(PREFIX)
    library, content = _library(), _open(name)
    parts = dict(content) if isinstance(content, library.DatasetDict) else {"train": content}
    # A saved set may ask for arrays. PIL images and plain values are needed here.
    parts = {key: part.with_format(None) if part.format["type"] else part for key, part in parts.items()}
    first = _training_part(parts, name)
    label = _label(parts[first], library)

    @cache
    def labels(which: str) -> Labels:
        if label is None or label not in parts[which].features:
            return Labels(why="" if label is None else f"it has no column {label}")
        return _labels(parts[which], label)

    # If the hub withholds the labels of a test part, they are all -1. A part with labels is then preferred.
    held = [key for word in TEST for key in parts if str(key).lower() == word]
    held.sort(key=lambda key: labels(key).values is None)
    test = held[0] if held else None
    read = [first] if test is None else [first, test]
    for which in read:
        if not len(parts[which]):
            raise InputError(f"data: {name}: the part {which} is empty")
    images = {which: _images(parts[which], f"{name}: {which}", library) for which in read}
    modes = [(is_grey(image), is_deep(image)) for w in read for image in _column(parts[w], images[w], f"{name}: {w}")]
    grey, deep = (sum(each) for each in zip(*modes, strict=True))
    channels = 1 if grey == len(modes) else 3

    def pixels(which: str) -> Tensor:
        part, image = parts[which], images[which]
        height, width = (size, size) if size else size_of(part[0][image])
        # The fingerprint is the library's own name for "this table after these operations".
        key = f"hf upright {part._fingerprint} {image} {size}"
        decoded = _decode(part, image, size, channels, (height, width), f"{name}: {which}")
        return assemble((len(part), height, width, channels), decoded, key, memory)

    x, *tests = (pixels(which) for which in read)
    if tests and tests[0].shape[1:] != x.shape[1:]:
        (h0, w0), (h, w) = x.shape[1:3], tests[0].shape[1:3]
        raise InputError(
            f"data: {name}: mixed sizes: {first} has {w0}x{h0}, {test} has {w}x{h}; give --size to resize them all"
        )
    y, y_test, why = _numbers(labels(first), labels(test) if test else Labels())
    notes = []
    if labels(first).why:
        notes.append(f"labels not used (column {label}): {labels(first).why}")
    elif y is None and test is not None and _label(parts[test], library):
        notes.append(f"labels of {test} not used: the part {first} has none")
    if grey and channels == 3:
        notes.append(f"{count(grey, 'grey image')} among colour ones, read as colour")
    if deep:
        notes.append(describe_deep(deep, (x, *tests)))
    if other := _not_read(parts, images, label, {key: labels(key).why for key in held}):
        notes.append(other)
    left = "".join(f"; {note}" for note in notes)
    short = Path(name).name if Path(name).is_dir() else name.split("/")[-1].partition(":")[0]
    of = "without classes" if y is None else f"of {count(len(y.unique()), 'class')} (column {label})"
    if test is None:
        text = f"{len(x):,} images {of} from the part {first}, one in five of them held out for testing"
        return hold_out(short, x, y, memory=memory, summary=f"{short}: {text}{left}")
    unlabelled = f" without labels ({why})" if y is not None and y_test is None else ""
    text = (
        f"{len(x):,} training images {of} from the part {first}, {len(tests[0]):,} test images{unlabelled} from {test}"
    )
    unseen = describe_unseen(y, y_test)
    summary = f"{short}: {text}{f'; {unseen}' if unseen else ''}{left}"
    return ImageSet(short, x, tests[0], y, y_test, summary=summary)


def _column(part: Any, column: str, where: str) -> Iterator[Any]:
    """Yield the PIL images of a column."""
    rows = iter(part.select_columns([column]))
    for i in range(len(part)):
        try:
            image = next(rows)[column]
        except unreadable() as error:
            raise InputError(f"data: {where}: image {i} cannot be read ({error})") from None
        if image is None:
            raise InputError(f"data: {where}: image {i} is missing")
        yield image


def _decode(
    part: Any, column: str, size: int | None, channels: int, sides: tuple[int, int], where: str
) -> Iterator[np.ndarray]:
    for i, image in enumerate(_column(part, column, where)):
        try:
            pixels = to_pixels(image, size, channels)
        except unreadable() as error:
            raise InputError(f"data: {where}: image {i} cannot be read ({error})") from None
        if pixels.shape[:2] != sides:
            (h, w), (h0, w0) = pixels.shape[:2], sides
            raise InputError(
                f"data: {where}: mixed sizes: image 0 is {w0}x{h0}, image {i} is {w}x{h}; "
                "give --size to resize them all"
            )
        yield pixels
