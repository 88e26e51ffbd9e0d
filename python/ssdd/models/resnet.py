"""ResNets under torchvision's names: those of this method by name, and others from the weights of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import InputError
from .width import scale_channels

DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}
STEM_PADDING = 2
"""Padding of a 3x3 stem in the published networks of this method and in solo-learn's; other code has 1."""


@dataclass(frozen=True)
class BlockShape:
    """The shape of a block beside its input: channels after each convolution, groups, a shortcut or none."""

    widths: tuple[int, ...]
    groups: int
    shortcut: bool


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 ("bottleneck", its stride in the 3x3), with BatchNorm and a shortcut (He
    et al., 2016): [N, I, H, W] to [N, O, H/s, W/s]."""

    def __init__(self, inside: int, shape: BlockShape, stride: int) -> None:
        super().__init__()
        sides = [3, 3] if len(shape.widths) == 2 else [1, 3, 1]
        self.depth = len(shape.widths)
        channels = inside
        for i, (width, side) in enumerate(zip(shape.widths, sides, strict=True)):
            step = stride if i == sides.index(3) else 1
            parts = shape.groups if side == 3 else 1
            self.add_module(f"conv{i + 1}", nn.Conv2d(channels, width, side, step, side // 2, groups=parts, bias=False))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(width))
            channels = width
        self.downsample = (
            nn.Sequential(nn.Conv2d(inside, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if shape.shortcut
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.depth else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Maps images [N, C, H, W] to features [N, D]: 2048 numbers for ResNet-50, 512 for ResNet-18. It has no classifier.

    A 7x7 stem has stride 2 and a max-pool. A 3x3 stem, for small images, has stride 1, ``stem_padding`` and no
    max-pool. The initial weights are torchvision's with ``zero_init_residual``: each block starts as its shortcut.

    Args:
        channels: channels of the images.
        stem: channels after the first convolution.
        stages: the blocks of each stage; the first block of every stage but the first has stride 2.
        small: whether the stem is 3x3. Default True.
        stem_padding: the padding of a 3x3 stem. Default 2.
    """

    def __init__(
        self,
        channels: int,
        stem: int,
        stages: Sequence[Sequence[BlockShape]],
        small: bool = True,
        stem_padding: int = STEM_PADDING,
    ) -> None:
        super().__init__()
        self.small = small
        how = (3, 1, stem_padding) if small else (7, 2, 3)
        self.conv1 = nn.Conv2d(channels, stem, *how, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        width = stem
        for number, shapes in enumerate(stages, 1):
            blocks: list[nn.Module] = []
            for shape in shapes:
                blocks.append(Block(width, shape, 2 if number > 1 and not blocks else 1))
                width = shape.widths[-1]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.stages, self.dimension = len(stages), width
        self._start()
        self.register_load_state_dict_pre_hook(_rename_old)

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Block):
                nn.init.zeros_(getattr(module, f"bn{module.depth}").weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x if self.small else F.max_pool2d(x, 3, 2, 1)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))


def named_resnet(name: str, channels: int, width: float = 1.0, stem: str = "cifar") -> ResNet:
    """Build ResNet-10 or ResNet-18 with random weights. Its features are [N, 512 · ``width``].

    Args:
        name: "resnet10" or "resnet18".
        channels: channels of the images.
        width: factor on all channels. Default 1.0.
        stem: "cifar" (default) is the published one (3x3, stride 1, padding 2, no max-pool), "imagenet" torchvision's.
    """
    sides = [scale_channels(64 << stage, width) for stage in range(4)]
    stages: list[list[BlockShape]] = []
    inside = sides[0]
    for depth, outside in zip(DEPTHS[name], sides, strict=True):
        first = BlockShape((outside, outside), 1, shortcut=bool(stages))
        stages.append([first, *[BlockShape((outside, outside), 1, shortcut=False)] * (depth - 1)])
    return ResNet(channels, inside, stages, stem == "cifar")


def standard_resnet(state: Mapping[str, Tensor], stem_padding: int = STEM_PADDING) -> ResNet:
    """Build the ResNet whose weights ``state`` holds under torchvision's names, without the classifier ``fc``.

    Depths, widths, groups and the stem are read from the weights. ``stem_padding``: the padding of a 3x3 stem. Raises
    :class:`InputError` if the weights are not those of a ResNet.
    """
    if not {"conv1.weight", "layer1.0.conv1.weight"} <= state.keys():
        raise InputError(
            f"state dict: expected torchvision's names of a ResNet (conv1.weight, layer1.0.conv1.weight), "
            f"got {', '.join(list(state)[:3]) or 'no tensor'}"
        )
    mine = {key: value for key, value in state.items() if key.startswith(("conv1.", "bn1.", "layer"))}
    try:
        stem = mine["conv1.weight"]
        if stem.dim() != 4 or stem.shape[2:] not in ((3, 3), (7, 7)):
            raise ValueError(f"conv1.weight: expected a stem of 7x7 or 3x3, got {list(stem.shape)}")
        stages = [_stage(mine, number) for number in range(1, 5)]
        network = ResNet(stem.shape[1], stem.shape[0], stages, stem.shape[2] == 3, stem_padding)
        network.load_state_dict(mine)
    except (RuntimeError, KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        why = " ".join(str(error).split())  # torch lists every name, one per line
        why = why if len(why) <= 400 else f"{why[:400]}..."
        raise InputError(f"state dict: not the weights of a ResNet as torchvision writes it ({why})") from None
    return network


def _stage(state: Mapping[str, Tensor], number: int) -> list[BlockShape]:
    """Read the shapes of the blocks of one stage from the weights."""
    shapes: list[BlockShape] = []
    for at in (f"layer{number}.{i}." for i in count()):
        weights = [state[key] for i in (1, 2, 3) if (key := f"{at}conv{i}.weight") in state]
        if not weights:
            return shapes
        widths = tuple(len(weight) for weight in weights)
        shapes.append(BlockShape(widths, widths[0] // weights[1].shape[1], f"{at}downsample.0.weight" in state))
    return shapes


def _rename_old(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give the weights of a ResNet that an earlier version wrote (``stem``, ``stages``) torchvision's names."""
    if f"{prefix}stem.0.weight" not in state:
        return
    assert isinstance(module, ResNet)
    places = [
        f"layer{number}.{block}"
        for number in range(1, module.stages + 1)
        for block in range(len(getattr(module, f"layer{number}")))
    ]
    for key in [key for key in state if key.startswith((f"{prefix}stem.", f"{prefix}stages."))]:
        name = key.removeprefix(prefix).replace("stem.0.", "conv1.").replace("stem.1.", "bn1.")
        if found := re.fullmatch(r"stages\.(\d+)\.(.*)", name):
            if int(found[1]) >= len(places):
                continue  # of another depth: loading names it
            inner = found[2].replace("norm", "bn").replace("shortcut.", "downsample.")
            name = f"{places[int(found[1])]}.{inner}"
        state[prefix + name] = state.pop(key)
