"""A folder of images: ``train/`` and ``test/`` (or ``val/``), one part alone, or Tiny-ImageNet's form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import InputError
from .sets import ImageSet, held_out
from .stream import MEMORY, assembled

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
GREY = {"1", "L", "LA", "I;16", "I;16L", "I;16B", "I"}
"""PIL's modes of one channel (and of grey with a mask)."""
TEST = ("test", "val", "validation", "valid")
"""Names of the folder of held-out images beside ``train``; the first that is there counts."""
ANNOTATIONS = Path("val") / "val_annotations.txt"

Labelled = tuple[list[Path], list[str]]
"""Image files in a fixed order, and the class of each; "" for one that has none."""


def is_grey(image: Any) -> bool:
    """Whether a PIL image has one channel."""
    return image.mode in GREY


def to_pixels(image: Any, size: int | None, channels: int) -> np.ndarray:
    """A PIL image as uint8 [H, W, channels]; 16 bits a pixel are brought to 8, grey repeated where colour is wanted."""
    from PIL import Image

    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("more than 16 bits a pixel")
        image = Image.fromarray((deep // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating point pixels")
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def _listing(root: Path) -> Labelled:
    """Files below ``root``, links followed; their class is the subfolder they lie in."""
    found: list[Path] = []
    for at, folders, names in os.walk(root, followlinks=True):
        if any(os.path.samefile(at, above) for above in Path(at).parents if above.is_relative_to(root)):
            raise InputError(f"data: {Path(at).relative_to(root)} is a link to a folder it lies in; remove it")
        folders.sort()
        # A link whose file is missing is kept: it is an image that cannot be read, and is reported as one.
        found += [Path(at, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    files = sorted(found)
    if not files:
        raise InputError(f"data: no images in the folder {root.name!r} (looked for {', '.join(sorted(SUFFIXES))})")
    return files, [p.relative_to(root).parts[0] if p.parent != root else "" for p in files]


def _tiny_imagenet(root: Path) -> list[Labelled]:
    """``train/<wnid>/images/*``, ``val/images/*`` with ``val/val_annotations.txt``; its test/ is left: no labels."""
    classes = {}
    for number, line in enumerate((root / ANNOTATIONS).read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise InputError(f"{root.name}/{ANNOTATIONS}: line {number}: expected FILE, tab, CLASS, got {line[:60]!r}")
        classes[fields[0]] = fields[1]
    train, (files, _) = _listing(root / "train"), _listing(root / "val" / "images")
    unknown = [f.name for f in files if f.name not in classes]
    if unknown:
        raise InputError(f"{root.name}/{ANNOTATIONS}: no class for {unknown[0]} ({len(unknown)} in all)")
    strange = sorted({classes[f.name] for f in files} - set(train[1]))
    if strange:
        raise InputError(f"{root.name}/{ANNOTATIONS}: the class {strange[0]} has no folder in train/")
    return [train, (files, [classes[f.name] for f in files])]


def _opened(file: Path, root: Path, use: Callable[[Any], Any]) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as stored:
            return use(stored)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        where = file.relative_to(root)
        raise InputError(f"{root.name}/{where}: unreadable image ({error}); repair or remove it") from None


def _form(parts: Sequence[Labelled], root: Path, size: int | None) -> tuple[int, int, int]:
    """Height, width and channels of all images, from their headers alone."""
    first, sides, channels = parts[0][0][0], None, 1
    for file in (f for files, _ in parts for f in files):
        (width, height), grey = _opened(file, root, lambda image: (image.size, is_grey(image)))
        channels = channels if grey else 3  # a few grey files among colour ones are common
        sides = sides or (height, width)
        if size is None and (height, width) != sides:
            raise InputError(
                f"{root.name}: mixed sizes: {first.relative_to(root)} is {sides[1]}x{sides[0]}, "
                f"{file.relative_to(root)} is {width}x{height}; give --size to resize them all"
            )
    assert sides is not None
    return (*((size, size) if size else sides), channels)


def _decoded(files: Sequence[Path], root: Path, size: int | None, channels: int) -> Iterator[np.ndarray]:
    for file in files:
        yield _opened(file, root, lambda image: to_pixels(image, size, channels))


def read_folder(root: Path, size: int | None = None, memory: int = MEMORY) -> ImageSet:
    """Read ``root/train`` and ``root/test`` (or ``val``), Tiny-ImageNet's form, or ``root`` (one in five held out).

    Class labels are the sorted names of the subfolders; a part with files outside any subfolder has no labels. A
    part of more than ``memory`` bytes is decoded into a file of the cache and mapped.
    """
    if size is not None and size < 1:
        raise InputError(f"size: expected a positive number of pixels, got {size}")
    rows: tuple[Tensor, ...] = ()
    if (root / ANNOTATIONS).is_file():
        parts = _tiny_imagenet(root)
    elif (root / "train").is_dir() and (test := next((name for name in TEST if (root / name).is_dir()), None)):
        parts = [_listing(root / "train"), _listing(root / test)]
    else:
        files, names = _listing(root)
        rows = held_out(root.name, len(files))
        parts = [([files[i] for i in part.tolist()], [names[i] for i in part.tolist()]) for part in rows]
    form = _form(parts, root, size)
    classes = {name: i for i, name in enumerate(sorted({name for _, names in parts for name in names}))}
    images, labels = [], []
    for files, names in parts:
        stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        decoded = _decoded(files, root, size, form[2])
        images.append(assembled((len(files), *form), decoded, f"{stamps} {size}", memory))
        labels.append(None if "" in classes else torch.tensor([classes[name] for name in names]))
    return ImageSet(root.name, images[0], images[1], labels[0], labels[1], *rows)
