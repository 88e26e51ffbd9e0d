"""The product: a :class:`DistilledSet`, one safetensors file that can be read without the code that made it.

A distilled set, a baseline (real images with the teacher's representations) and an imported set all have this form,
so that evaluation is the same for all of them.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.utils.data import Dataset

from ..config import STORAGE_NAMES, InputError, current_names, in_float32
from .compact import pack, unpack
from .files import read_safetensors, write_atomically
from .preprocessing import Preprocessing
from .transforms import versions_per_image

FORMAT = "ssdd.distilled-set"
FORMAT_VERSION = 1
COMPACT_VERSION = 2
"""The version of a compact file, which earlier versions of ssdd refuse."""
STORAGE_VERSION = 1
"""Of what a set was learned in, beside images and targets."""
_STORED = "storage."
"""Begins the names of its tensors in the file."""
_META: dict[str, type] = {
    "method": str,
    "seed": int,
    "source": str,
    "support_input": str,
    "target_kind": str,
    "config": dict,
    "versions": dict,
    "metrics": dict,
}


_LATER: dict[str, type] = {"recipe": dict, "licence": str}
"""What files of earlier versions do not have."""


@dataclass(eq=False)
class DistilledSet(Dataset[tuple[Tensor, Tensor]]):
    """Images and the targets that a network should learn from them: a ``torch.utils.data.Dataset``.

    ``pairs[i]`` is image i as network input, float32 [C, H, W], and its target, float32 [C]; a ``DataLoader`` can read
    it. For a set this small, :meth:`inputs` and ``targets`` as whole tensors are faster.

    Args:
        images: float32 [S, C, H, W], pixels whose nominal range is [0, 1]; learned pixels may leave it.
        targets: float32 [S, C], representations, or one-hot labels if ``target_kind`` is "labels".
        preprocessing: mean and std of the real images.
        method: name of the row in tables. Default "krr-st".
        seed: the seed that the set was made with. Default 0.
        source: name of the image set that it was made from. Default "".
        support_input: "normalised" (default): :meth:`inputs` normalises the images. "raw" (the published code): it does
            not; real images are normalised in both cases.
        target_kind: "representation" (default), "labels", or "assignments" (shares of clusters).
        config: the settings of the distillation, as JSON values. Default {}.
        versions: versions of the software that made it. Default {}.
        metrics: what the run measured, as JSON values. Default {}.
        storage: what the set was learned in ("kind", "version", "bytes", "transforms"); images and targets follow from
            it. Default {}, for a set that was not distilled.
        stored: its tensors, if images and targets are not all of them. Default {}.
    """

    images: Tensor
    targets: Tensor
    preprocessing: Preprocessing
    method: str = "krr-st"
    seed: int = 0
    source: str = ""
    support_input: Literal["normalised", "raw"] = "normalised"
    target_kind: Literal["representation", "labels", "assignments"] = "representation"
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    """The pre-training that the set was made for: the fields of :class:`PretrainConfig`; empty if it is not known."""
    licence: str = ""
    """A note on the licence of the images."""
    storage: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or not self.images.is_floating_point():
            raise InputError(
                f"images: expected floating point [S, C, H, W], got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.targets.dim() != 2 or not self.targets.is_floating_point():
            raise InputError(
                f"targets: expected floating point [S, C], got {self.targets.dtype} {list(self.targets.shape)}"
            )
        if 0 in (*self.images.shape, *self.targets.shape):
            shapes = f"{list(self.images.shape)}, {list(self.targets.shape)}"
            raise InputError(f"images, targets: expected at least one pair, got {shapes}")
        if len(self.images) != len(self.targets):
            raise InputError(f"targets: expected one per image ({len(self.images)}), got {len(self.targets)}")
        if self.images.shape[1] != len(self.preprocessing.mean):
            raise InputError(
                f"preprocessing: expected {self.images.shape[1]} channels, got {len(self.preprocessing.mean)}"
            )
        if self.support_input not in ("normalised", "raw"):
            raise InputError(f"support_input: expected 'normalised' or 'raw', got {self.support_input!r}")
        if self.target_kind not in ("representation", "labels", "assignments"):
            raise InputError(
                f"target_kind: expected 'representation', 'labels' or 'assignments', got {self.target_kind!r}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.images[i]  # an IndexError past the end ends a `for` over a Dataset
        if self.support_input == "normalised":
            image = self.preprocessing.normalise(image[None])[0]
        return image, self.targets[i]

    def inputs(self) -> Tensor:
        """Return the images as network input, float32 [S, C, H, W]."""
        return self.preprocessing.normalise(self.images) if self.support_input == "normalised" else self.images

    @property
    def bytes(self) -> int:
        """The bytes of what the set is stored in, at four bytes a number; a label is one number."""
        if self.storage:
            return int(self.storage["bytes"])
        whole = self.target_kind == "labels" and bool((self.targets.amax(1) == 1).all())
        return 4 * (self.images.numel() + (len(self) if whole else self.targets.numel()))

    def save(self, path: str | os.PathLike[str], *, compact: bool = False) -> Path:
        """Write one safetensors file, completely or not at all. A write that is stopped leaves the old file as it was.

        Args:
            path: the file.
            compact: True writes pixels with 8 bits and targets with 16, and leaves out copies by fixed transforms and
                what a set is stored in beside its pixels; :meth:`load` computes the copies. A pixel changes by at most
                1/510 of the range of its image and channel. Default: False, float32 and exact.

        Returns:
            The path.

        Raises:
            InputError: with ``compact``, if a pixel is not finite.
        """
        meta = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "preprocessing": asdict(self.preprocessing),
            **{key: getattr(self, key) for key in (*_META, *_LATER)},
            "storage": self.storage,
        }
        named = {"images": self.images, "targets": self.targets}
        named |= {_STORED + name: value for name, value in self.stored.items() if not compact}
        tensors = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in named.items()}
        if compact:
            tensors, about = pack(tensors["images"], tensors["targets"], self.storage.get("transforms", "none"))
            meta |= {"format_version": COMPACT_VERSION, "compact": about, "storage": self._storage_as_pixels()}
        return write_atomically(path, to_bytes(tensors, metadata={"ssdd": json.dumps(meta)}))

    def _storage_as_pixels(self) -> dict[str, Any]:
        """Return what the set would say of its storage if its pixels and targets were all there is."""
        if self.storage.get("kind", "pixels") == "pixels":
            return self.storage
        pixels = self.images.numel() // versions_per_image(self.storage.get("transforms", "none"))
        return self.storage | {"kind": "pixels", "bytes": 4 * (pixels + self.targets.numel())}

    @classmethod
    @in_float32
    def load(cls, path: str | os.PathLike[str]) -> DistilledSet:
        """Read what :meth:`save` wrote. Nothing in the file is executed; an :class:`InputError` says what is wrong."""
        tensors, meta = read_safetensors(path)
        if meta.get("format") != FORMAT:
            raise InputError(f"{path}: expected a distilled set written by ssdd, got format {meta.get('format')!r}")
        if meta.get("format_version") not in (FORMAT_VERSION, COMPACT_VERSION):
            raise InputError(
                f"{path}: format version {meta.get('format_version')!r}, this ssdd reads up to {COMPACT_VERSION}; "
                "install the version of ssdd that wrote it"
            )
        _check_storage(path, meta.get("storage", {}))
        missing = {"images", "targets"} - set(tensors)
        if missing:
            raise InputError(f"{path}: the file lacks {', '.join(sorted(missing))}")
        if meta["format_version"] == COMPACT_VERSION:
            try:
                tensors["images"], tensors["targets"] = unpack(tensors, meta.get("compact"))
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
        try:
            pre = Preprocessing.stored(meta)
            fields = {key: meta[key] for key in _META}
            fields |= {key: meta.get(key, kind()) for key, kind in _LATER.items()}
            wrong = [key for key, kind in (_META | _LATER).items() if not isinstance(fields[key], kind)]
            if wrong:
                raise TypeError(f"{wrong[0]} is a {type(fields[wrong[0]]).__name__}")
            fields["config"] = current_names(fields["config"], "distill")
            fields["recipe"] = current_names(fields["recipe"], "pretrain")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged metadata ({error!r})") from None
        stored = {key.removeprefix(_STORED): value for key, value in tensors.items() if key.startswith(_STORED)}
        for key in ("images", "targets", *(_STORED + name for name in stored)):
            if not bool(torch.isfinite(tensors[key]).all()):
                raise InputError(f"{path}: {key}: values that are not finite")
        fields |= {"storage": meta.get("storage", {}), "stored": stored}
        return cls(images=tensors["images"], targets=tensors["targets"], preprocessing=pre, **fields)


def _check_storage(path: str | os.PathLike[str], storage: Any) -> None:
    """Refuse a storage that this version does not know. Its images and targets could be read, but not what they are
    made of."""
    if not isinstance(storage, dict) or (storage and not isinstance(storage.get("version"), int)):
        raise InputError(f"{path}: damaged metadata (storage: expected an object with a version, got {storage!r})")
    kind, version = storage.get("kind", "pixels"), storage.get("version", STORAGE_VERSION)
    if kind not in STORAGE_NAMES or version > STORAGE_VERSION:
        raise InputError(
            f"{path}: stored as {kind!r}, version {version}; this ssdd knows {', '.join(STORAGE_NAMES)} up to version "
            f"{STORAGE_VERSION}; install the version of ssdd that wrote it"
        )
