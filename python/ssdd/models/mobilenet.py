"""MobileNetV2 for small images: expansion 2, and a first convolution of stride 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .width import scale_channels

STAGES = (
    (1, 16, 1, 1),
    (2, 24, 2, 1),
    (2, 32, 3, 2),
    (2, 64, 4, 2),
    (2, 96, 3, 1),
    (2, 160, 3, 2),
    (2, 320, 1, 1),
)
"""Of each stage: expansion, channels, blocks, stride of the first block."""


class InvertedResidual(nn.Module):
    """1x1 convolution to ``expansion`` times the channels, 3x3 of each channel alone, 1x1 back; BatchNorm after each.

    With stride 1 the input is added, through a 1x1 convolution with BatchNorm if the channels change.
    [N, I, H, W] -> [N, O, H/s, W/s].
    """

    def __init__(self, inside: int, outside: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inside
        self.expand = nn.Sequential(nn.Conv2d(inside, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.filter = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner)
        )
        self.project = nn.Sequential(nn.Conv2d(inner, outside, 1, bias=False), nn.BatchNorm2d(outside))
        self.added = stride == 1
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside))
            if self.added and inside != outside
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu(self.filter(F.relu(self.expand(x)))))
        return y + self.shortcut(x) if self.added else y


class MobileNetV2(nn.Module):
    """Maps images [N, C, H, W] to features [N, 1280 · ``width``], the mean over positions."""

    def __init__(self, channels: int, width: float = 1.0) -> None:
        super().__init__()
        inside = scale_channels(32, width)
        self.stem = nn.Sequential(nn.Conv2d(channels, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside))
        blocks: list[nn.Module] = []
        for expansion, outside, count, stride in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(inside, scale_channels(outside, width), expansion, 1 if i else stride))
                inside = scale_channels(outside, width)
        self.blocks = nn.Sequential(*blocks)
        self.dimension = scale_channels(1280, width)
        self.last = nn.Sequential(nn.Conv2d(inside, self.dimension, 1, bias=False), nn.BatchNorm2d(self.dimension))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return F.relu(self.last(x)).mean((2, 3))
