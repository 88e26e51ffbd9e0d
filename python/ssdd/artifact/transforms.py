"""Fixed transforms: versions of every distilled image that are part of the set, each with a target of its own.

They are not random, so the outer loss stays unbiased (arXiv 2507.21455).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..config import InputError


def _rotate(quarters: int, flip: bool = False) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.rot90(x.flip(3) if flip else x, quarters, (2, 3))


_ROTATIONS = tuple(_rotate(quarters) for quarters in range(1, 4))
TRANSFORMS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "none": (),
    "flip": (_rotate(0, flip=True),),
    "rotations": _ROTATIONS,
    "dihedral": (*_ROTATIONS, *(_rotate(quarters, flip=True) for quarters in range(4))),
}
"""Value of ``distill.transforms`` -> the transforms beside the identity, images [S, C, H, W] -> the same shape."""


def versions_per_image(name: str) -> int:
    """Return T, the versions of an image that are in the set: itself and its transforms."""
    return 1 + len(TRANSFORMS[name])


def transformed(name: str, x: Tensor) -> Tensor:
    """Return all versions of the images x [S, C, H, W], the images themselves first; [T S, C, H, W]."""
    return torch.cat([x, *(transform(x) for transform in TRANSFORMS[name])]) if TRANSFORMS[name] else x


def check_transforms(name: str, size: tuple[int, int]) -> None:
    """Raise :class:`InputError` if images of ``size`` (height, width) have no such transforms."""
    if name in ("rotations", "dihedral") and size[0] != size[1]:
        raise InputError(f"distill.transforms: {name!r} needs square images, got {size[0]}x{size[1]}; use 'flip'")
