"""ResNets under torchvision's names, built to fit a state dict: 7x7 stem with max-pool, or CIFAR's 3x3 without."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import InputError

STEM_PADDING = 2
"""Padding of a 3x3 stem in the published teachers of this method and in solo-learn's; other code has 1."""


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 ("bottleneck", its stride in the 3x3), and a shortcut.

    [N, I, H, W] -> [N, O, H/s, W/s]; ``widths`` are the channels after each convolution.
    """

    def __init__(self, inside: int, widths: list[int], stride: int, groups: int, shortcut: bool) -> None:
        super().__init__()
        sides = [3, 3] if len(widths) == 2 else [1, 3, 1]
        self.depth, channels = len(widths), inside
        for i, (width, side) in enumerate(zip(widths, sides, strict=True)):
            step = stride if i == sides.index(3) else 1
            parts = groups if side == 3 else 1
            self.add_module(f"conv{i + 1}", nn.Conv2d(channels, width, side, step, side // 2, groups=parts, bias=False))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(width))
            channels = width
        self.downsample = (
            nn.Sequential(nn.Conv2d(inside, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if shortcut
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.depth else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class StandardResNet(nn.Module):
    """Maps images [N, C, H, W] to features [N, D]: 2048 numbers for ResNet-50, 512 for ResNet-18. It has no classifier.

    ``state``: weights under torchvision's names; depths, widths, groups and the stem are read from it. A 7x7 stem has
    stride 2 and a max-pool. A 3x3 stem, for small images, has stride 1, ``stem_padding`` and no max-pool.
    """

    def __init__(self, state: Mapping[str, Tensor], stem_padding: int = STEM_PADDING) -> None:
        super().__init__()
        stem = state["conv1.weight"]
        if stem.dim() != 4 or stem.shape[2:] not in ((3, 3), (7, 7)):
            raise ValueError(f"conv1.weight: expected a stem of 7x7 or 3x3, got {list(stem.shape)}")
        self.small = stem.shape[2] == 3
        how = (3, 1, stem_padding) if self.small else (7, 2, 3)
        self.conv1 = nn.Conv2d(stem.shape[1], stem.shape[0], *how, bias=False)
        self.bn1 = nn.BatchNorm2d(stem.shape[0])
        channels = stem.shape[0]
        for stage in range(1, 5):
            blocks: list[nn.Module] = []
            for at in (f"layer{stage}.{i}." for i in count()):
                weights = [state[key] for i in (1, 2, 3) if (key := f"{at}conv{i}.weight") in state]
                if not weights:
                    break
                widths = [len(weight) for weight in weights]
                groups = widths[0] // weights[1].shape[1]
                stride = 2 if stage > 1 and not blocks else 1
                blocks.append(Block(channels, widths, stride, groups, f"{at}downsample.0.weight" in state))
                channels = widths[-1]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.dimension = channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x if self.small else F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3))


def standard_resnet(state: Mapping[str, Tensor], stem_padding: int = STEM_PADDING) -> StandardResNet:
    """Build the ResNet whose weights ``state`` holds under torchvision's names, without the classifier ``fc``.

    ``stem_padding``: the padding of a 3x3 stem. Raises :class:`InputError` if the weights are not those of a ResNet.
    """
    if not {"conv1.weight", "layer1.0.conv1.weight"} <= state.keys():
        raise InputError(
            f"state dict: expected torchvision's names of a ResNet (conv1.weight, layer1.0.conv1.weight), "
            f"got {', '.join(list(state)[:3]) or 'no tensor'}"
        )
    mine = {key: value for key, value in state.items() if key.startswith(("conv1.", "bn1.", "layer"))}
    try:
        network = StandardResNet(mine, stem_padding)
        network.load_state_dict(mine)
    except (RuntimeError, KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"state dict: not the weights of a ResNet as torchvision writes it ({error})") from None
    return network
