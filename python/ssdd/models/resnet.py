"""ResNet-10 and ResNet-18 with the published stem: 3x3 convolution, stride 1, padding 2, no max-pool."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al., 2016): [N, I, H, W] to [N, O, H/s, W/s]."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inside == outside
            else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Maps images [N, C, H, W] to features [N, 512]."""

    dimension = 512

    def __init__(self, channels: int, depths: tuple[int, ...] = DEPTHS["resnet18"]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 3, stride=1, padding=2, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        stages: list[nn.Module] = []
        width = 64
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stages.append(BasicBlock(width, 64 << stage, 2 if stage and not block else 1))
                width = 64 << stage
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).mean((2, 3))
