"""A folder of images: ``train/`` and ``test/``, or one part; in each, files, or one subfolder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import InputError
from .sets import ImageSet, hold_out

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def _listing(root: Path) -> tuple[list[Path], list[str]]:
    """Image files in a fixed order, and the class (name of the subfolder) of each; "" for files of the root."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
    return files, [p.relative_to(root).parts[0] if p.parent != root else "" for p in files]


def _read(file: Path, root: Path, size: int | None) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as stored:
            image = stored.convert("L" if stored.mode in ("1", "L", "LA", "I;16") else "RGB")
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        where = file.relative_to(root)
        raise InputError(f"{root.name}/{where}: unreadable image ({error}); repair or remove it") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _images(root: Path, files: list[Path], size: int | None) -> Tensor:
    pixels = [_read(file, root, size) for file in files]
    if any(p.shape[-1] == 3 for p in pixels):  # a few grey files among colour ones are common
        pixels = [p if p.shape[-1] == 3 else np.repeat(p, 3, axis=-1) for p in pixels]
    for file, p in zip(files, pixels, strict=True):
        if p.shape != pixels[0].shape:
            (h, w), (h0, w0) = p.shape[:2], pixels[0].shape[:2]
            raise InputError(
                f"{root.name}: mixed sizes: {files[0].relative_to(root)} is {w0}x{h0}, "
                f"{file.relative_to(root)} is {w}x{h}; give --size to resize them all"
            )
    return torch.from_numpy(np.stack(pixels))


def read_folder(root: Path, size: int | None = None) -> ImageSet:
    """Read ``root/train`` and ``root/test`` (or ``root`` alone, one image in five held out).

    Class labels are the sorted names of the subfolders; a part with files outside any subfolder has no labels.
    """
    if size is not None and size < 1:
        raise InputError(f"size: expected a positive number of pixels, got {size}")
    parts = [root / "train", root / "test"] if (root / "train").is_dir() and (root / "test").is_dir() else [root]
    images, labels = [], []
    for part in parts:
        files, names = _listing(part)
        if not files:
            raise InputError(f"data: no images in the folder {part.name!r} (looked for {', '.join(sorted(SUFFIXES))})")
        images.append(_images(part, files, size))
        labels.append(names)
    classes = sorted(set().union(*labels))
    index = {name: i for i, name in enumerate(classes)}
    y = [torch.tensor([index[n] for n in names]) if "" not in classes else None for names in labels]
    if len(parts) == 1:
        return hold_out(root.name, images[0], y[0])
    return ImageSet(root.name, images[0], images[1], y[0], y[1])
