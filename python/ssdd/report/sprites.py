"""Many small images as one picture inside the page: a sprite, of which a style sheet shows one tile at a time."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .markup import Html, tag

PIXELS = 1 << 20
"""Pixels of one sprite, at most; larger images are made smaller."""
LOSSY_FROM = 1 << 16
"""Pixels from which a sprite of real photographs is a JPEG, a third of the size of a PNG."""


@dataclass(frozen=True)
class Sprite:
    """The tiles of one picture, left to right, then down."""

    name: str
    columns: int
    rows: int
    count: int
    uri: str
    reduced: bool
    """True if the images were made smaller to fit."""

    @property
    def style(self) -> str:
        """The rule that gives the class ``name`` this picture."""
        return f".{self.name}{{background-image:url({self.uri});--cols:{self.columns};--rows:{self.rows}}}\n"

    def tile(self, i: int, *, element: str = "i", **attributes: object) -> Html:
        """Tile ``i`` as an element."""
        place = f"--x:{i % self.columns};--y:{i // self.columns}"
        return tag(element, class_=f"tile {self.name}", style=place, **attributes)


def make_sprite(images: Tensor, name: str, photographs: bool = False, pixels: int = PIXELS) -> Sprite:
    """``images``: uint8 [N, H, W, 1 or 3]. ``photographs``: they may lose a little, if there are many."""
    from PIL import Image

    images, reduced = _fitted(images, pixels)
    n, h, w, c = images.shape
    columns = max(1, min(n, round(math.sqrt(n * h / w))))
    rows = math.ceil(n / columns)
    sheet = torch.zeros(rows * columns, h, w, c, dtype=torch.uint8)
    sheet[:n] = images
    sheet = sheet.view(rows, columns, h, w, c).permute(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)
    picture = Image.fromarray(sheet[..., 0].numpy() if c == 1 else sheet.numpy())
    content = io.BytesIO()
    lossy = photographs and n * h * w >= LOSSY_FROM
    if lossy:
        picture.save(content, "JPEG", quality=82, optimize=True)
    else:
        picture.save(content, "PNG", optimize=True)
    code = base64.b64encode(content.getvalue()).decode()
    return Sprite(name, columns, rows, n, f"data:image/{'jpeg' if lossy else 'png'};base64,{code}", reduced)


def _fitted(images: Tensor, pixels: int) -> tuple[Tensor, bool]:
    n, h, w, _ = images.shape
    factor = math.sqrt(n * h * w / pixels)
    if factor <= 1.02:
        return images, False
    size = max(1, int(h / factor)), max(1, int(w / factor))
    x = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="area")
    return x.round().to(torch.uint8).permute(0, 2, 3, 1), True
