"""The published student: blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 average pool."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import InputError


class ConvNet(nn.Module):
    """Maps images [N, C, H, W] to features [N, D].

    ``pooled=False`` (students): all positions, D = widths[-1] · H/2^k · W/2^k for k blocks. ``pooled=True`` (teachers):
    the mean over positions, D = widths[-1].
    """

    def __init__(self, channels: int, size: tuple[int, int], widths: tuple[int, ...], pooled: bool = False) -> None:
        super().__init__()
        if min(size) >> len(widths) < 1:
            raise InputError(
                f"widths: {len(widths)} blocks halve the image side {len(widths)} times, "
                f"too often for images of {size[0]}x{size[1]}; give fewer widths"
            )
        blocks: list[nn.Module] = []
        for inside, outside in zip((channels, *widths[:-1]), widths, strict=True):
            blocks += [
                nn.Conv2d(inside, outside, 3, padding=1),
                nn.BatchNorm2d(outside),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.pooled = pooled
        positions = (size[0] >> len(widths)) * (size[1] >> len(widths))
        self.dimension = widths[-1] * (1 if pooled else positions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x.mean((2, 3)) if self.pooled else x.flatten(1)
