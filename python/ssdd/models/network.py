"""A backbone with a last linear layer, and the names of networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import InputError, StudentConfig
from .convnet import ConvNet
from .mobilenet import MobileNetV2
from .outside import outside_backbone
from .resnet import DEPTHS, ResNet, named_resnet
from .stacks import STACKS, Stack
from .width import scaled

_M = TypeVar("_M")


class Network(nn.Module):
    """Images [N, C, H, W] -> predicted representation [N, outputs]; :meth:`features` stops before the last layer."""

    def __init__(self, backbone: nn.Module, dimension: int, outputs: int) -> None:
        super().__init__()
        self.half_training = self.compiled = False
        self.backbone = backbone
        self.head = nn.Linear(dimension, outputs)
        self.dimension = dimension

    def features(self, x: Tensor) -> Tensor:
        """Features [N, D], D = ``dimension``: f of the paper."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.half_training and self.training):
            return self.head(self.backbone(x))
        with torch.autocast(x.device.type, torch.bfloat16):
            y = self.head(self.backbone(x))
        return y.float()

    def faster(self, compiled: bool = False, half_training: bool = False) -> Network:
        """This network, compiled (also where :func:`frozen` reads it), training in bf16 with weights in 32 bits."""
        self.compiled, self.half_training = compiled, half_training
        if compiled:
            self.compile()
        return self

    def extra_repr(self) -> str:
        return ", ".join(name for name in ("compiled", "half_training") if getattr(self, name))


NAMES = (*DEPTHS, *STACKS, "mobilenetv2")


def build(
    name: str, channels: int, size: tuple[int, int], outputs: int, *, width: float = 1.0, stem: str = "cifar"
) -> Network:
    """Return a new network for images of ``channels`` and ``size`` (height, width) with ``outputs`` outputs.

    ``name``: ``"convnet-16-32"`` (one width per block), ``"resnet10"``, ``"resnet18"``, ``"vgg11"``, ``"alexnet"`` or
    ``"mobilenetv2"``; ``"timm:NAME"`` or ``"torchvision:NAME"`` if that package is installed; or
    ``"package.module:factory"`` of yours, called as ``factory(channels, size)``, which returns a module from images
    [N, C, H, W] to features [N, D]. ``width`` multiplies all channels of a network of this package. ``stem`` is that
    of a ResNet: "cifar" (3x3, stride 1, padding 2, no max-pool) or "imagenet" (torchvision's).
    The random start comes from torch's global generator; :func:`seeded` fixes it without disturbing that one.
    Raises :class:`InputError` for an unknown name, and for a network that has no features at that image size.
    """
    if not 0 < width < float("inf"):
        raise InputError(f"width: expected a number above 0, got {width}")
    if stem not in ("cifar", "imagenet"):
        raise InputError(f"stem: expected 'cifar' or 'imagenet', got {stem!r}")
    if stem != "cifar" and name not in DEPTHS:
        raise InputError(f"stem: only {' and '.join(DEPTHS)} have a choice of stem, got stem {stem!r} for {name!r}")
    if ":" in name:
        if width != 1:
            raise InputError(f"width: only networks of this package have a width, got {width} for {name!r}")
        return Network(*outside_backbone(name, channels, size), outputs)
    backbone = _backbone(name, channels, size, width, stem)
    return Network(backbone, backbone.dimension, outputs)


def _backbone(
    name: str, channels: int, size: tuple[int, int], width: float, stem: str
) -> ConvNet | MobileNetV2 | ResNet | Stack:
    kind, _, widths = name.partition("-")
    if name in DEPTHS:
        return named_resnet(name, channels, width, stem)
    if name in STACKS:
        return Stack(name, channels, size, width)
    if name == "mobilenetv2":
        return MobileNetV2(channels, width)
    if kind == "convnet" and widths and all(w.isdigit() and int(w) for w in widths.split("-")):
        return ConvNet(channels, size, tuple(scaled(int(w), width) for w in widths.split("-")))
    raise InputError(
        f"model: expected {', '.join(NAMES)}, convnet-W-W (such as convnet-16-32), timm:NAME, torchvision:NAME or "
        f"package.module:factory, got {name!r}"
    )


def student(config: StudentConfig, channels: int, size: tuple[int, int], outputs: int) -> Network:
    """Return a new network as ``config`` describes it, for images of ``channels`` and ``size`` (height, width)."""
    network = build(config.model, channels, size, outputs, width=config.width, stem=config.stem)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.faster(config.compiled, config.training == "bf16")


def seeded(make: Callable[[], _M], seed: int) -> _M:
    """What ``make`` returns when torch's global generator starts at ``seed``; the generator is put back after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch every GPU's generator too
        return make()
