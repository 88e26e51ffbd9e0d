"""From what a user names to an :class:`ImageSet`."""

from __future__ import annotations

from pathlib import Path

from ..config import InputError
from .digits import digits
from .folder import read_folder
from .npz import read_npz
from .sets import ImageSet


def load_images(source: str | Path = "digits", size: int | None = None) -> ImageSet:
    """Images from ``"digits"`` (embedded), a folder, or an ``.npz`` file.

    ``size``: resize a folder's images to this many pixels a side (antialiased, aspect ratio not kept).
    Raises :class:`InputError` with what is wrong and where.
    """
    path = Path(source)
    if str(source) != "digits" and path.is_dir():
        return read_folder(path, size)
    if size is not None:
        raise InputError(f"size: only a folder of images is resized, got data {path.name!r}")
    if str(source) == "digits":
        return digits()
    if path.suffix == ".npz":
        return read_npz(path)
    raise InputError(f"data: expected 'digits', a folder of images or an .npz file, got {str(source)!r}")
