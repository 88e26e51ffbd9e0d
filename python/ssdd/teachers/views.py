"""Representations of known views of a training set: drawn once, represented once, kept like plain ones."""

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
from .representations import cached, write_parts
from .teacher import Teacher, at_once


class Views:
    """Of each view of ``data``'s training images, what the teacher says. View i is ``crops``' i-th, of image i modulo
    their number; ``represent`` is the teacher for images normalised as the data are. ``teacher`` and ``cache``: with
    both, the folder keeps them, under a key of weights, images, torch version and crops; else they are computed each
    time.
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

    def kept(self) -> Tensor | None:
        """What the cache holds, mapped; None where it holds nothing."""
        return None if self.file is None else cached(self.file, self.count)

    def parts(self) -> int:
        """How many times :meth:`computed` yields."""
        return -(-self.count // self.at_once)

    @torch.no_grad()
    def computed(self) -> Iterator[Tensor]:
        """Float32 [views, D], in main memory, a part at a time."""
        n = len(self.data.x_train)
        for view in torch.arange(self.count).split(self.at_once):
            pixels = gather(self.data.x_train, view % n, self.device).permute(0, 3, 1, 2).float().div(255)
            top, left, flip = (drawn[view] for drawn in self.crops)
            y = self.represent(self.data.preprocessing.normalise(crop(pixels, self.pad, (top, left, flip)))).cpu()
            if not bool(torch.isfinite(y).all()):
                raise InputError("teacher: its output has values that are not finite; check weights and preprocessing")
            yield y

    def keep(self, each: Callable[[], object]) -> Tensor:
        """Compute them into a file of the cache, a part in memory at a time; ``each`` is called after each part.

        Returns them mapped.
        """
        assert self.file is not None

        def told() -> Iterator[Tensor]:
            for part in self.computed():
                yield part
                each()

        return write_parts(self.file, self.count, told())
