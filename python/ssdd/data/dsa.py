"""DSA (Zhao and Bilen, 2021): one random operation per batch, its parameters drawn image by image.

Each operation takes pixels, float [N, C, H, W] on any device, and the parameters that a ``draw_`` function drew in main
memory, and returns new pixels of the same shape. A gradient passes through. The strengths are the published ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import to_device

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_PAD = 0.125
"""Largest shift, as a share of the side."""
CUTOUT = 0.5
"""Side of the square that is cut out, as a share of the image's."""
FLIP = 0.5
"""Probability of a left-right flip."""
SCALE = 1.2
"""The image is shrunk or enlarged by at most this factor, each axis alone."""
ROTATE = 15.0
"""Largest rotation, in degrees."""

Parameters = tuple[Tensor, ...]
"""The parameters of one operation, one row per image, in main memory."""


def random_operation(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``pixels`` [N, C, H, W] under one operation of ``OPERATIONS``, drawn for the whole batch."""
    name = OPERATIONS[int(torch.randint(len(OPERATIONS), (1,), generator=generator))]
    return apply(name, pixels, draw(name, pixels.shape, generator))


def draw(name: str, shape: torch.Size, generator: torch.Generator) -> Parameters:
    """Draw the parameters of the operation ``name`` for images of ``shape`` [N, C, H, W]."""
    n, _, height, width = shape
    g = generator
    if name == "colour":
        return tuple(torch.rand(n, generator=g) for _ in range(3))
    if name == "crop":
        return tuple(
            torch.randint(-reach, reach + 1, (n,), generator=g)
            for reach in (int(side * CROP_PAD + 0.5) for side in (height, width))
        )
    if name == "cutout":
        return tuple(
            torch.randint(0, side + (1 - hole % 2), (n,), generator=g)
            for side, hole in ((side, int(side * CUTOUT + 0.5)) for side in (height, width))
        )
    if name == "flip":
        return (torch.rand(n, generator=g) < FLIP,)
    if name == "scale":
        return tuple(torch.rand(n, generator=g) * (SCALE - 1 / SCALE) + 1 / SCALE for _ in range(2))
    if name == "rotate":
        return ((torch.rand(n, generator=g) * 2 - 1) * ROTATE,)
    raise ValueError(f"operation: expected one of {', '.join(OPERATIONS)}, got {name!r}")


def apply(name: str, pixels: Tensor, parameters: Parameters) -> Tensor:
    """Return ``pixels`` [N, C, H, W] under the operation ``name`` with the parameters that :func:`draw` drew."""
    return _OPERATIONS[name](pixels, *(to_device(p, pixels.device) for p in parameters))


def colour(pixels: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add brightness, then move from the pixel's grey (saturation), then from the image's mean (contrast).

    Each parameter is uniform in [0, 1], shape [N]: brightness adds up to half of ``BRIGHTNESS`` either way, saturation
    multiplies by 0 to ``SATURATION``, contrast by ``CONTRAST`` to 1 + ``CONTRAST``.
    """
    b, s, c = (p.to(pixels.dtype).view(-1, 1, 1, 1) for p in (brightness, saturation, contrast))
    x = pixels + (b - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (s * SATURATION)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (c + CONTRAST)


def crop(pixels: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Take the window that lies ``down`` rows and ``right`` columns further, int64 [N]; what is outside is 0."""
    n, _, height, width = pixels.shape
    rows = down[:, None] + torch.arange(height, device=pixels.device)
    columns = right[:, None] + torch.arange(width, device=pixels.device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    image = torch.arange(n, device=pixels.device).view(n, 1, 1)
    moved = pixels[image, :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2).contiguous()


def cutout(pixels: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Set a rectangle of half the sides, its middle at ``row`` and ``column``, int64 [N], to 0; it may lie across an
    edge of the image."""
    _, _, height, width = pixels.shape

    def covered(middle: Tensor, side: int) -> Tensor:
        hole = int(side * CUTOUT + 0.5)
        first = middle[:, None] - hole // 2
        at = torch.arange(side, device=pixels.device)
        return (at >= first.clamp(0, side - 1)) & (at <= (first + hole - 1).clamp(0, side - 1))

    hidden = covered(row, height)[:, :, None] & covered(column, width)[:, None, :]
    return pixels * ~hidden[:, None]


def flip(pixels: Tensor, flipped: Tensor) -> Tensor:
    """Flip those images left to right; ``flipped``: bool [N]."""
    return torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)


def scale(pixels: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Shrink the axes by ``across`` and ``down``, [N], about the middle (below 1: enlarge); what is outside is 0."""
    zero = torch.zeros_like(across)
    return _affine(pixels, torch.stack([across, zero, zero, zero, down, zero], -1))


def rotate(pixels: Tensor, degrees: Tensor) -> Tensor:
    """Rotate about the middle by ``degrees``, [N]; what is outside is 0."""
    angle = degrees.deg2rad()
    zero = torch.zeros_like(angle)
    return _affine(pixels, torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], -1))


def _affine(pixels: Tensor, theta: Tensor) -> Tensor:
    """Where each pixel is taken from, in coordinates whose corners are the middles of the corner pixels."""
    grid = F.affine_grid(theta.view(-1, 2, 3).to(pixels.dtype), list(pixels.shape), align_corners=True)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "colour": colour,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
OPERATIONS = tuple(_OPERATIONS)
"""The names of the operations; one is drawn per batch."""
