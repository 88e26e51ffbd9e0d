"""The product: a :class:`DistilledSet`, one safetensors file that needs none of the code that made it.

A distilled set, a baseline (real images with the teacher's representations) and an import of somebody else's
file are all this one thing, so that evaluation has one road.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from .config import InputError

FORMAT = "ssdd.distilled-set"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image: pixels in [0, 1], minus ``mean``, divided by ``std``, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(f"Preprocessing: expected one mean and one std a channel, got {self.mean} and {self.std}")
        if not all(s > 0 for s in self.std):
            raise InputError(f"Preprocessing.std: expected positive numbers, got {self.std}")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [N, C, H, W] in [0, 1], floating point -> network input of the same shape."""
        mean = torch.tensor(self.mean, dtype=pixels.dtype, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=pixels.dtype, device=pixels.device).view(1, -1, 1, 1)
        return (pixels - mean) / std

    def __call__(self, images: Tensor) -> Tensor:
        """Stored images, uint8 [N, H, W, C] -> network input, float32 [N, C, H, W]."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != len(self.mean):
            raise InputError(
                f"images: expected uint8 [N, H, W, {len(self.mean)}], got {images.dtype} {list(images.shape)}"
            )
        return self.normalise(images.permute(0, 3, 1, 2).to(torch.float32).div(255))


@dataclass
class DistilledSet:
    """Images and the targets a network should learn from them.

    ``images``: float32 [S, C, H, W], pixels whose nominal range is [0, 1] (learned pixels may leave it).
    ``targets``: float32 [S, C], representations, or labels one-hot where ``target_kind`` says so.
    ``support_input``: whether :meth:`inputs` normalises the images ("normalised") or not ("raw", as the published
    code does; real images are normalised in both cases).
    """

    images: Tensor
    targets: Tensor
    preprocessing: Preprocessing
    method: str = "krr-st"
    seed: int = 0
    source: str = ""
    support_input: Literal["normalised", "raw"] = "normalised"
    target_kind: Literal["representation", "labels"] = "representation"
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or not self.images.is_floating_point():
            raise InputError(
                f"images: expected floating point [S, C, H, W], got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.targets.dim() != 2 or not self.targets.is_floating_point():
            raise InputError(
                f"targets: expected floating point [S, C], got {self.targets.dtype} {list(self.targets.shape)}"
            )
        if len(self.images) != len(self.targets):
            raise InputError(f"targets: expected one an image ({len(self.images)}), got {len(self.targets)}")
        if self.images.shape[1] != len(self.preprocessing.mean):
            raise InputError(
                f"preprocessing: expected {self.images.shape[1]} channels, got {len(self.preprocessing.mean)}"
            )
        if self.support_input not in ("normalised", "raw"):
            raise InputError(f"support_input: expected 'normalised' or 'raw', got {self.support_input!r}")
        if self.target_kind not in ("representation", "labels"):
            raise InputError(f"target_kind: expected 'representation' or 'labels', got {self.target_kind!r}")

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self) -> Tensor:
        """What a network is fed for the images: float32 [S, C, H, W]."""
        return self.preprocessing.normalise(self.images) if self.support_input == "normalised" else self.images

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all (a stopped write leaves the old file as it was)."""
        meta = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "preprocessing": asdict(self.preprocessing),
            **{key: getattr(self, key) for key in _META},
        }
        tensors = {
            "images": self.images.detach().to("cpu", torch.float32).contiguous(),
            "targets": self.targets.detach().to("cpu", torch.float32).contiguous(),
        }
        return write_atomically(path, to_bytes(tensors, metadata={"ssdd": json.dumps(meta)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DistilledSet:
        """Read what :meth:`save` wrote. Nothing in the file is executed; an :class:`InputError` says what is wrong."""
        tensors, meta = read_safetensors(path)
        if meta.get("format") != FORMAT:
            raise InputError(f"{path}: expected a distilled set written by ssdd, got format {meta.get('format')!r}")
        if meta.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {meta.get('format_version')!r}, this ssdd reads {FORMAT_VERSION}; "
                "install the version of ssdd that wrote it"
            )
        missing = {"images", "targets"} - set(tensors)
        if missing:
            raise InputError(f"{path}: the file lacks {', '.join(sorted(missing))}")
        try:
            pre = Preprocessing(*(tuple(map(float, meta["preprocessing"][key])) for key in ("mean", "std")))
            fields = {key: meta[key] for key in _META}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged metadata ({error!r})") from None
        return cls(images=tensors["images"], targets=tensors["targets"], preprocessing=pre, **fields)


_META = ("method", "seed", "source", "support_input", "target_kind", "config", "versions", "metrics")


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the JSON under the metadata key ``ssdd`` (empty where there is none) of a safetensors file."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("ssdd", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    if not isinstance(meta, dict):
        raise InputError(f"{path}: damaged metadata (expected an object, got {type(meta).__name__})")
    return tensors, meta


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` beside ``path`` and move it there in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would surprise whoever shares the directory
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
