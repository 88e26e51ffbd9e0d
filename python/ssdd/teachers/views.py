"""Representations of known views of a training set: drawn once, computed once, and cached like those of plain
images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import fingerprint
from ..config import InputError
from ..data import Crops, ImageSet, crop, gather
from .representations import map_cached, write_parts
from .teacher import Teacher, at_once


class Views:
    """The teacher's representations of each view of ``data``'s training images.

    View i is the i-th of ``crops``, of image i modulo the number of images. ``represent`` is the teacher for images
    with the normalisation of ``data``. With ``teacher`` and ``cache``, the folder keeps the result, under a key of
    weights, images, torch version and crops. Otherwise it is computed each time.
    """

    def __init__(
        self,
        represent: Callable[[Tensor], Tensor],
        data: ImageSet,
        crops: Crops,
        pad: int,
        device: torch.device,
        teacher: Teacher | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.represent, self.data, self.crops, self.pad, self.device = represent, data, crops, pad, device
        self.count, self.at_once = len(crops[0]), at_once(*data.size)
        self.file: Path | None = None
        if teacher is not None and cache is not None:
            drawn = " ".join(fingerprint(part) for part in crops)
            whole = f"{teacher.key()} {data.fingerprint} {torch.__version__} {pad} {drawn}"
            self.file = Path(cache) / f"{hashlib.sha256(whole.encode()).hexdigest()[:32]}.npy"

    def read(self) -> Tensor | None:
        """Map the cached representations; None if there are none."""
        return None if self.file is None else map_cached(self.file, self.count)

    def parts(self) -> int:
        """Return how many parts :meth:`compute` yields."""
        return -(-self.count // self.at_once)

    @torch.no_grad()
    def compute(self) -> Iterator[Tensor]:
        """Yield the representations, float32 [views, D] in main memory, part by part."""
        n = len(self.data.x_train)
        for view in torch.arange(self.count).split(self.at_once):
            pixels = gather(self.data.x_train, view % n, self.device).permute(0, 3, 1, 2).float().div(255)
            top, left, flip = (drawn[view] for drawn in self.crops)
            y = self.represent(self.data.preprocessing.normalise(crop(pixels, self.pad, (top, left, flip)))).cpu()
            if not bool(torch.isfinite(y).all()):
                raise InputError("teacher: its output has values that are not finite; check weights and preprocessing")
            yield y

    def write(self, each: Callable[[], object]) -> Tensor:
        """Compute the representations into a file of the cache, part by part, and return it mapped. ``each`` is
        called after each part."""
        assert self.file is not None

        def compute_parts() -> Iterator[Tensor]:
            for part in self.compute():
                yield part
                each()

        return write_parts(self.file, self.count, compute_parts())
