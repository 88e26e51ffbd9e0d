"""A folder of images: ``train/`` and ``test/`` (or ``val/``), one part alone, or Tiny-ImageNet's form."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import InputError, Pulse, Report, silent
from .layout import CLASSES, Layout, Part, find_layout
from .pictures import describe_deep, is_deep, is_grey, size_of, to_pixels, with_image
from .sets import ImageSet, describe_unseen, draw_held_out
from .stream import MEMORY, assemble
from .tree import count, scan, skipped_files, some

ANNOTATIONS = Path("val") / "val_annotations.txt"


@dataclass
class Form:
    """The common form of all images of a set: height, width, channels; the number of grey images among colour ones,
    and of those with 16 bits per channel."""

    height: int
    width: int
    channels: int
    grey: int
    deep: int


def _tiny_imagenet(root: Path) -> Layout:
    """Read ``train/<wnid>/images/*`` and ``val/images/*`` with ``val/val_annotations.txt``. test/ has no labels and
    is left out."""
    classes = {}
    for number, line in enumerate((root / ANNOTATIONS).read_text("utf-8", "replace").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise InputError(f"{root.name}/{ANNOTATIONS}: line {number}: expected FILE, tab, CLASS, got {line[:60]!r}")
        classes[fields[0]] = fields[1]
    train, val = scan(root / "train"), scan(root / "val" / "images")
    loose = [p for p in train.pictures if len(p.parts) == 1]
    if loose:
        raise InputError(
            f"{root.name}/train: {count(len(loose), 'image')} beside the class folders ({some(loose)}); remove it"
        )
    unknown = [str(f) for f in val.pictures if f.name not in classes]
    if unknown:
        raise InputError(f"{root.name}/{ANNOTATIONS}: no class for {unknown[0]} ({len(unknown)} in all)")
    names = sorted({p.parts[0] for p in train.pictures})
    strange = sorted({classes[f.name] for f in val.pictures} - set(names))
    if strange:
        raise InputError(f"{root.name}/{ANNOTATIONS}: the class {strange[0]} has no folder in train/")
    parts = [
        Part("train", [train.root / p for p in train.pictures], [p.parts[0] for p in train.pictures]),
        Part("val", [val.root / p for p in val.pictures], [classes[p.name] for p in val.pictures]),
    ]
    notes = [f"test labels from {ANNOTATIONS}"]
    if (root / "test").is_dir():
        notes.append("not read: test/ (it has no labels)")
    skipped = [entry for entry in (*train.skipped, *val.skipped) if not entry[1].name.endswith("_boxes.txt")]
    if skipped:
        notes.append(skipped_files(skipped))
    return Layout(parts, names, notes)


def _readable(parts: Sequence[Part], root: Path, names: Sequence[str], report: Report) -> tuple[list[Part], list[Path]]:
    """The parts without the files that cannot be decoded, and these files. Decodes every file once more."""
    bad, kept = [], []
    pulse, done = Pulse(report, "check", sum(len(part.files) for part in parts)), 0
    for part in parts:
        good = []
        for i, file in enumerate(part.files):
            pulse(done + i)
            try:
                with_image(file, root, lambda image: to_pixels(image, 1, 3))
            except InputError:
                bad.append(file.relative_to(root))
            else:
                good.append(i)
        if not good:
            raise InputError(f"data: no image of {root.name}/{part.place} can be read ({some(bad)})")
        done += len(part.files)
        kept.append(replace(part, files=[part.files[i] for i in good]))
        if part.classes is not None:
            kept[-1].classes = [part.classes[i] for i in good]
    empty = sorted(set(names) - set(kept[0].classes or names))
    if empty:
        raise InputError(f"data: no training image of the class {some(empty)} can be read; repair or remove its files")
    return kept, bad


def _form(parts: Sequence[Part], root: Path, size: int | None) -> Form:
    """Find the common form of all images from their headers; for images with a rotated EXIF orientation, from their
    pixels."""
    sides, channels, grey, deep = None, 1, 0, 0
    first = parts[0].files[0]
    for file in (f for part in parts for f in part.files):
        (height, width), one, bits = with_image(
            file, root, lambda image: ((1, 1) if size is not None else size_of(image), is_grey(image), is_deep(image))
        )
        grey += one
        deep += bits
        channels = channels if one else 3  # a few grey files among colour ones are common
        sides = sides or (height, width)
        if (height, width) != sides:
            raise InputError(
                f"{root.name}: mixed sizes: {first.relative_to(root)} is {sides[1]}x{sides[0]}, "
                f"{file.relative_to(root)} is {width}x{height}; give --size to resize them all"
            )
    assert sides is not None
    height, width = (size, size) if size is not None else sides
    return Form(height, width, channels, grey if channels == 3 else 0, deep)


def _decode(
    files: Sequence[Path], root: Path, size: int | None, channels: int, pulse: Pulse, done: int
) -> Iterator[np.ndarray]:
    """Yield the pixels of ``files``. ``pulse`` is told how many of all files are done, ``done`` of them before."""
    for i, file in enumerate(files):
        pulse(done + i)
        yield with_image(file, root, lambda image: to_pixels(image, size, channels))


def _no_shared_files(parts: Sequence[Part], root: Path) -> list[str]:
    """Refuse a test image that is a training image by a link. Count the files that links show more than once."""
    real = [[_identity(file) for file in part.files] for part in parts]
    if len(parts) == 2:
        train = dict(zip(real[0], parts[0].files, strict=True))
        shared = [(file, train[path]) for path, file in zip(real[1], parts[1].files, strict=True) if path in train]
        if shared:
            test, same = (file.relative_to(root) for file in shared[0])
            raise InputError(
                f"data: {root.name}: links make {count(len(shared), 'file')} both a training and a test image "
                f"({test} is {same}); remove the links"
            )
    again = sum(len(paths) - len(set(paths)) for paths in real)
    return [f"{count(again, 'image')} there more than once, through links"] if again else []


def _identity(file: Path) -> object:
    """Return what a file has in common with its links, symbolic and hard ones."""
    with suppress(OSError):
        about = file.stat()
        if about.st_nlink > 1:  # the numbers of other files are not looked at: some network file systems repeat them
            return about.st_dev, about.st_ino
    return os.path.realpath(file)


def read_folder(
    root: Path,
    size: int | None = None,
    memory: int = MEMORY,
    classes: str | None = None,
    skip_unreadable: bool = False,
    report: Report = silent,
) -> ImageSet:
    """Read ``root/train`` and ``root/test`` (or ``val``), Tiny-ImageNet's form, or ``root`` (one in five held out).

    Classes are numbered by the sorted names of the training part's folders; see :mod:`.layout` for what is a part and
    what a class, and for ``classes``. With ``skip_unreadable`` a file that cannot be decoded is left out and counted
    in the summary; every file is then decoded twice. A part of more than ``memory`` bytes is decoded into a file of the
    cache and mapped.
    """
    if size is not None and size < 1:
        raise InputError(f"size: expected a positive number of pixels, got {size}")
    if classes is not None and classes not in CLASSES:
        raise InputError(f"classes: expected one of {', '.join(CLASSES)}, got {classes!r}")
    root = Path(os.path.abspath(root)) if root.name in ("", "..") else root
    if (root / ANNOTATIONS).is_file() and classes != "none":
        layout = _tiny_imagenet(root)
    else:
        layout = find_layout(scan(root), classes)
    parts, notes = layout.parts, []
    if skip_unreadable:
        parts, bad = _readable(parts, root, layout.names, report)
        if bad:
            notes.append(f"{count(len(bad), 'unreadable image')} skipped ({some(bad)})")
    notes += _no_shared_files(parts, root)
    rows = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    if len(parts) == 1:
        whole, rows = parts[0], draw_held_out(root.name, len(parts[0].files))
        parts = [
            Part(
                whole.place,
                [whole.files[i] for i in part.tolist()],
                None if whole.classes is None else [whole.classes[i] for i in part.tolist()],
            )
            for part in rows
        ]
    files = tuple(str(file.relative_to(root)) for part in parts for file in part.files)
    form = _form(parts, root, size)
    number = {name: i for i, name in enumerate(layout.names)}
    images, labels = [], []
    pulse, done = Pulse(report, "read", len(files)), 0
    for part in parts:
        stamps = [(os.path.realpath(f), f.stat().st_size, f.stat().st_mtime_ns) for f in part.files]
        decoded = _decode(part.files, root, size, form.channels, pulse, done)
        done += len(part.files)
        shape = (len(part.files), form.height, form.width, form.channels)
        images.append(assemble(shape, decoded, f"upright {stamps} {size}", memory))
        labels.append(None if part.classes is None else torch.tensor([number[name] for name in part.classes]))
    if form.grey:
        notes.append(f"{count(form.grey, 'grey image')} among colour ones, read as colour")
    if form.deep:
        notes.append(describe_deep(form.deep, images))
    if len(layout.parts) == 1 and (unseen := describe_unseen(labels[0], labels[1], layout.names)):
        notes.append(unseen)
    summary = "; ".join([_counts(root, layout, images), *layout.notes, *notes])
    return ImageSet(root.name, images[0], images[1], labels[0], labels[1], *rows, summary=summary, files=files)


def _counts(root: Path, layout: Layout, images: Sequence[Tensor]) -> str:
    """Return the first words of the summary: how many images, of which classes, from which folder."""
    of = f"of {count(len(layout.names), 'class')} ({some(layout.names, 5)})" if layout.names else "without classes"
    train, test = (len(x) for x in images)
    place = layout.parts[0].place
    where = f" from {place}/" if place else ""
    if len(layout.parts) == 2:
        return (
            f"{root.name}: {count(train, 'training image')} {of}{where}, "
            f"{count(test, 'test image')} from {layout.parts[1].place}/"
        )
    held = f"{test:,} of them (one in five) held out for testing"
    return f"{root.name}: {count(train + test, 'image')} {of}{where}, {held}"
