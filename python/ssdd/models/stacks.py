"""VGG-11 and AlexNet for small images: one stack of convolution, BatchNorm, ReLU and max-pool."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import InputError
from .width import scale_channels

POOL = (0, 2)
"""A 2x2 max-pool among the layers of a stack."""

STACKS: dict[str, tuple[tuple[int, int], ...]] = {
    "vgg11": (
        *((64, 3), POOL),
        *((128, 3), POOL),
        *((256, 3), (256, 3), POOL),
        *((512, 3), (512, 3), POOL),
        *((512, 3), (512, 3), POOL),
    ),
    "alexnet": (
        *((128, 5), POOL),
        *((192, 5), POOL),
        *((256, 3), (192, 3), (192, 3), POOL),
    ),
}
"""Name -> its layers: channels and side of a convolution, or ``POOL``."""


class Stack(nn.Module):
    """Maps images [N, C, H, W] to features [N, D] of all positions: D = last channels · H/2^k · W/2^k, k max-pools."""

    def __init__(self, name: str, channels: int, size: tuple[int, int], width: float = 1.0) -> None:
        super().__init__()
        pools = STACKS[name].count(POOL)
        height, breadth = size[0] >> pools, size[1] >> pools
        if not height or not breadth:
            raise InputError(
                f"model: {name} halves the image side {pools} times, so it needs images of at least "
                f"{1 << pools}x{1 << pools}, got {size[0]}x{size[1]}; choose another model, or larger images"
            )
        layers: list[nn.Module] = []
        inside = channels
        for outside, side in STACKS[name]:
            if (outside, side) == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            outside = scale_channels(outside, width)
            layers += [
                nn.Conv2d(inside, outside, side, padding=side // 2),
                nn.BatchNorm2d(outside),
                nn.ReLU(inplace=True),
            ]
            inside = outside
        self.layers = nn.Sequential(*layers)
        self.dimension = inside * height * breadth

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)
