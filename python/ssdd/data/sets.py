"""One form for every source of images: :class:`ImageSet`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifact import MOST_CLASSES, Preprocessing
from ..config import InputError
from .device import keep_on_device
from .stream import MEMORY, assemble, chunks, content_key, rows_of

HELD_OUT = 0.2
"""Share of the images held out for testing if the source has no test images."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Training and held-out images, with labels if the source has them.

    Args:
        name: name of the set.
        x_train: training images, uint8 [N, H, W, C] with C = 1 or 3.
        x_test: held-out images of the same size, uint8 [Q, H, W, C].
        y_train: labels, int64 [N], numbers of classes from 0. Default None: no labels.
        y_test: labels of the held-out images, int64 [Q]. Default None: no labels.
        rows_train: the row of each image in the source (training images first, then its test images), int64 [N], which
            matches representations that were computed elsewhere. Default: 0 to N - 1.
        rows_test: the same for the held-out images, int64 [Q]. Default: N to N + Q - 1.
        files: the file of each image below its folder (training images, then held-out ones). Default: ().
        summary: one line on what the loader found and what it left out. Default "".
    """

    name: str
    x_train: Tensor
    x_test: Tensor
    y_train: Tensor | None = None
    y_test: Tensor | None = None
    rows_train: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    rows_test: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    summary: str = ""
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[-1] not in (1, 3):
                raise InputError(
                    f"{self.name}: x_{part}: expected uint8 [N, H, W, 1 or 3], got {x.dtype} {list(x.shape)}"
                )
            if 0 in x.shape:
                raise InputError(
                    f"{self.name}: x_{part}: expected at least one image, of at least one pixel, got {list(x.shape)}"
                )
            if y is not None and (y.dim() != 1 or len(y) != len(x) or y.dtype != torch.int64):
                raise InputError(f"{self.name}: y_{part}: expected int64 [{len(x)}], got {y.dtype} {list(y.shape)}")
            if y is not None and not 0 <= int(y.min()) <= int(y.max()) < MOST_CLASSES:
                raise InputError(
                    f"{self.name}: y_{part}: expected labels from 0 to at most {MOST_CLASSES - 1}, "
                    f"got {int(y.min())} to {int(y.max())}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise InputError(
                f"{self.name}: x_test: expected images of {list(self.x_train.shape[1:])} as in x_train, "
                f"got {list(self.x_test.shape[1:])}"
            )
        object.__setattr__(self, "summary", one_line(self.summary))
        if not len(self.rows_train):
            n, q = len(self.x_train), len(self.x_test)
            object.__setattr__(self, "rows_train", torch.arange(n))
            object.__setattr__(self, "rows_test", torch.arange(n, n + q))

    @property
    def channels(self) -> int:
        return int(self.x_train.shape[3])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.x_train.shape[1]), int(self.x_train.shape[2])

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return 0 if self.y_train is None else int(self.y_train.max()) + 1

    def one_hot(self) -> Tensor:
        """The labels of the training images, float32 [N, classes]; an :class:`InputError` if there are none."""
        if self.y_train is None:
            raise InputError(f"{self.name}: expected labelled training images, got none with labels")
        return F.one_hot(self.y_train, self.classes).float()

    def on(self, device: torch.device) -> ImageSet:
        """Return the same set with its training images on ``device`` if they fit there, still uint8."""
        if self.x_train.device == device:
            return self
        x_train = keep_on_device(self.x_train, device)
        moved = replace(self, x_train=x_train, x_test=self.x_test)
        moved.__dict__.update(preprocessing=self.preprocessing, fingerprint=self.fingerprint)  # computed once, here
        return moved

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Mean and standard deviation of the training pixels, per channel."""
        # Moments from 256 counts are exact and need no float copy of a large set.
        counts = torch.zeros(self.channels, 256, dtype=torch.int64)
        for images in chunks(self.x_train):
            for channel in range(self.channels):
                counts[channel] += torch.bincount(images[..., channel].reshape(-1), minlength=256)
        mean, std = [], []
        levels = torch.arange(256, dtype=torch.float64) / 255
        for count in counts:
            share = count.double() / count.sum()
            m = float((share * levels).sum())
            mean.append(m)
            std.append(max(float((share * (levels - m) ** 2).sum()) ** 0.5, 1e-3))
        return Preprocessing(tuple(mean), tuple(std))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images, which identifies the data in cache keys and checkpoints."""
        digest = hashlib.sha256()
        for x in (self.x_train, self.x_test):
            digest.update(str(tuple(x.shape)).encode())
            for images in chunks(x):
                digest.update(images.contiguous().numpy().tobytes())
        return digest.hexdigest()


def one_line(text: str) -> str:
    """Return ``text`` with every character that does not print, which names of files may have, as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe_unseen(y_train: Tensor | None, y_test: Tensor | None, names: Sequence[str] = ()) -> str:
    """Return words on classes that only the test images have, for a summary; "" if there are none.

    ``names``: the name of each class. Default: its number.
    """
    if y_train is None or y_test is None:
        return ""
    only = sorted(set(y_test.tolist()) - set(y_train.tolist()))
    words = [names[y] if names else str(y) for y in only[:5]] + ["..."] * (len(only) > 5)
    return f"test images of classes without training images: {', '.join(words)}" if only else ""


def draw_held_out(name: str, n: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Draw rows to train on and ``count`` rows to hold out (default: one in five) of ``n`` images. The draw is
    always the same."""
    count = max(1, round(n * HELD_OUT)) if count is None else count
    if n < 2 or count >= n:
        raise InputError(f"{name}: expected at least two images, to hold one out for testing, got {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[count:].sort().values, order[:count].sort().values


def hold_out(
    name: str, images: Tensor, labels: Tensor | None, count: int | None = None, memory: int = MEMORY, summary: str = ""
) -> ImageSet:
    """Split images that have no test part by :func:`draw_held_out`."""
    rows = draw_held_out(name, len(images), count)
    key = f"{content_key(images)} {count}" if images.nbytes > memory else ""
    x = [assemble((len(r), *images.shape[1:]), rows_of(images, r), f"{key} {i}", memory) for i, r in enumerate(rows)]
    y = [None if labels is None else labels[r] for r in rows]
    return ImageSet(name, x[0], x[1], y[0], y[1], *rows, summary=summary)
