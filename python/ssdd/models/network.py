"""A backbone with a last linear layer, and networks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import InputError, StudentConfig
from .convnet import ConvNet
from .resnet import DEPTHS, ResNet

_M = TypeVar("_M")


class Network(nn.Module):
    """Maps images [N, C, H, W] to predicted representations [N, outputs]; :meth:`features` leaves out the last layer.

    Args:
        backbone: maps images to features [N, dimension].
        dimension: the number of features.
        outputs: the number of outputs.
    """

    def __init__(self, backbone: nn.Module, dimension: int, outputs: int) -> None:
        super().__init__()
        self.half_training = self.compiled = False
        self.backbone = backbone
        self.head = nn.Linear(dimension, outputs)
        self.dimension = dimension

    def features(self, x: Tensor) -> Tensor:
        """Return the features [N, D], D = ``dimension`` (the paper's f)."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.half_training and self.training):
            return self.head(self.backbone(x))
        with torch.autocast(x.device.type, torch.bfloat16):
            y = self.head(self.backbone(x))
        return y.float()

    def faster(self, compiled: bool = False, half_training: bool = False) -> Network:
        """Set how this network runs and return it: ``compiled`` (also in :func:`frozen`), or training in bf16 with
        float32 weights."""
        self.compiled, self.half_training = compiled, half_training
        if compiled:
            self.compile()
        return self

    def extra_repr(self) -> str:
        return ", ".join(name for name in ("compiled", "half_training") if getattr(self, name))


def build(name: str, channels: int, size: tuple[int, int], outputs: int) -> Network:
    """Return a new network by name, with random initial weights of torch's global generator (:func:`seeded` fixes
    them).

    Args:
        name: "resnet18", "resnet10", or "convnet-W-W-..." with one width per block, such as "convnet-16-32".
        channels: channels of the images.
        size: (height, width) of the images in pixels.
        outputs: number of outputs.
    """
    backbone: ConvNet | ResNet
    kind, _, widths = name.partition("-")
    if name in DEPTHS:
        backbone = ResNet(channels, DEPTHS[name])
    elif kind == "convnet" and widths and all(w.isdigit() and int(w) for w in widths.split("-")):
        backbone = ConvNet(channels, size, tuple(int(w) for w in widths.split("-")))
    else:
        raise InputError(f"model: expected {', '.join(DEPTHS)} or convnet-W-W (such as convnet-16-32), got {name!r}")
    return Network(backbone, backbone.dimension, outputs)


def student(config: StudentConfig, channels: int, size: tuple[int, int], outputs: int) -> Network:
    """Return a new network as ``config`` describes it.

    Args:
        config: the settings of the student.
        channels: channels of the images.
        size: (height, width) of the images in pixels.
        outputs: number of outputs: the length of a representation.
    """
    network = build(config.model, channels, size, outputs)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.faster(config.compiled, config.training == "bf16")


def seeded(make: Callable[[], _M], seed: int) -> _M:
    """Return ``make()``, called with torch's global generator seeded; the generator's state is restored afterwards.

    Args:
        make: a function without arguments.
        seed: the seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch every GPU's generator too
        return make()
