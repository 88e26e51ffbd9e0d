"""Image files: their size and pixels as image viewers show them, with the EXIF orientation applied."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..config import InputError

ALWAYS = frozenset((".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".gif", ".webp")) | {
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
}
"""Endings of image files that every Pillow reads."""
BY_PLUGIN = {".heic": "pillow-heif", ".heif": "pillow-heif", ".avif": "Pillow 11.3"}
"""Endings that Pillow reads with a plugin or since a version, and its name."""
GREY = {"1", "L", "LA", "I;16", "I;16L", "I;16B", "I"}
"""PIL's modes of one channel (and of grey with a mask)."""
ORIENTATION = 0x0112
"""The EXIF tag of the camera's orientation."""
EXIF_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Keys under which Pillow stores EXIF data, which may have the orientation."""
ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations that swap height and width."""


@cache
def suffixes() -> frozenset[str]:
    """Return the endings of the image files that can be read here."""
    from PIL import Image, features

    found = set(ALWAYS)
    try:
        from pillow_heif import register_heif_opener  # optional
    except ImportError:
        pass
    else:
        register_heif_opener()
        found |= {".heic", ".heif"}
    Image.init()
    if "AVIF" in Image.OPEN and features.check("avif"):
        found.add(".avif")
    return frozenset(found)


def is_grey(image: Any) -> bool:
    """Return True for a PIL image of one channel."""
    return image.mode in GREY


def is_deep(image: Any) -> bool:
    """Return True for a PIL image of 16 bits per pixel, or more."""
    return image.mode.startswith("I")


def describe_deep(count: int, images: Sequence[Tensor]) -> str:
    """Return words on ``count`` images of 16 bits among ``images``, for a summary. Cameras and microscopes often use a
    part of the 16 bits, of which 8 bits then show nothing."""
    brightest = max(int(part.max()) for x in images for part in x.split(4096))
    words = f"{count:,} {'image' if count == 1 else 'images'} of 16 bits per channel, of which the upper 8 are used"
    if brightest >= 64:
        return words
    return f"{words}: the brightest pixel is {brightest} of 255; scale the files to all 16 bits if that is too dark"


def orientation(image: Any) -> int:
    """Return the EXIF orientation of a PIL image, 1 to 8; 1 if the file has none or it cannot be read.

    Viewers also show an image with damaged EXIF data as it is stored.
    """
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parsers of EXIF and XMP raise many kinds; none of them says that pixels are wrong
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Any) -> Any:
    """Return a PIL image with its orientation applied. An image that needs no change is returned as it is.

    Pillow's ``exif_transpose`` also rewrites the EXIF block, which fails on many real files. Only the pixels are needed
    here.
    """
    from PIL import Image

    image.load()
    if image.format == "TIFF":  # Pillow has just applied the orientation; before version 11 it leaves the tag
        return image
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in EXIF_KEYS:
        turned.info.pop(key, None)  # so that it is not turned again
    return turned


def size_of(image: Any) -> tuple[int, int]:
    """Return height and width of a PIL image as :func:`upright` gives it. Only an image that may be turned is
    decoded."""
    width, height = image.size
    # Pillow decodes a PNG to read its EXIF data. A square image keeps its size, so it is skipped.
    if width != height and orientation(image) in ON_ITS_SIDE:
        width, height = upright(image).size
    return height, width


def to_pixels(image: Any, size: int | None, channels: int) -> np.ndarray:
    """Return a PIL image, upright, as uint8 [H, W, channels].

    16 bits per pixel become 8. Grey is repeated if 3 channels are needed. ``size`` resizes to a square.
    """
    from PIL import Image

    image = upright(image)
    if is_deep(image):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("more than 16 bits per pixel")
        image = Image.fromarray((deep // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating point pixels")
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


@cache
def unreadable() -> tuple[type[Exception], ...]:
    """Return the exceptions that Pillow raises for damaged files: several, as each format has its own reader."""
    from PIL import Image

    plain = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, LookupError, TypeError, ArithmeticError)
    return (*plain, MemoryError, struct.error, Image.DecompressionBombError)


def with_image(file: Path, root: Path, use: Callable[[Any], Any]) -> Any:
    """Open ``file`` and return ``use(image)``. Raises :class:`InputError` naming the file if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as stored:
            return use(stored)
    except unreadable() as error:
        where = file.relative_to(root)
        raise InputError(
            f"{root.name}/{where}: unreadable image ({error}); repair or remove it, or leave out such files with "
            f"skip_unreadable (--skip-unreadable)"
        ) from None
