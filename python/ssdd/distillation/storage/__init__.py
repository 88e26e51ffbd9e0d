"""How distilled images and targets are stored while they are learned. A kind of storage is one file of this folder.

``bases.py`` is the storage "bases", a value of ``distill.storage``. The file defines a subclass of :class:`Storage` and
names it ``STORAGE``. Files whose name begins with an underscore are no storage. An artifact holds what is stored beside
the images and targets that follow from it, so that a reader needs none of this.
"""

from __future__ import annotations

from importlib import import_module

from ...artifact import STORAGE_VERSION, DistilledSet, versions_per_image
from ...config import STORAGE_NAMES, DistillConfig, InputError
from ...data import ImageSet
from ._base import Source, Storage

STORAGES: dict[str, type[Storage]] = {name: import_module(f".{name}", __name__).STORAGE for name in STORAGE_NAMES}
"""Name -> class of every kind of storage, in alphabetical order."""


def image_count(config: DistillConfig, data: ImageSet, outputs: int) -> int:
    """Return S: ``config.images``, or as many as ``config.budget`` bytes hold. ``outputs``: numbers in a target."""
    if not config.budget:
        return config.images
    kind, shape = STORAGES[config.storage], (data.channels, *data.size)
    views = versions_per_image(config.transforms)
    fixed, one = (kind.bytes_of(config, count, shape, outputs, views) for count in (0, 1))
    if config.budget < one:
        raise InputError(
            f"distill.budget: expected at least {one:,} bytes, what one image takes as {config.storage!r}, "
            f"got {config.budget:,}"
        )
    return (config.budget - fixed) // (one - fixed)


def describe(storage: Storage, config: DistillConfig) -> dict[str, object]:
    """Return what an artifact says of its storage."""
    return {
        "kind": config.storage,
        "version": STORAGE_VERSION,
        "bytes": storage.bytes,
        "transforms": config.transforms,
    }


def stored_in(pairs: DistilledSet) -> Storage:
    """Return the storage that an artifact was learned in, with its values; nothing of it can be learned further.

    Its images, with their transforms, are ``pairs.images``, and its targets are ``pairs.targets``. Raises
    :class:`InputError` if the artifact holds none, such as an import or a selection of real images.
    """
    if not pairs.storage:
        raise InputError("pairs: expected a set that was distilled; this one holds images and targets only")
    return STORAGES[pairs.storage["kind"]].restore(pairs)


__all__ = ["STORAGES", "Source", "Storage", "describe", "image_count", "stored_in"]
