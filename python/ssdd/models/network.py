"""A backbone with a last linear layer, and networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import InputError, StudentConfig, in_float32
from .convnet import ConvNet
from .mobilenet import MobileNetV2
from .outside import LIBRARIES, outside_backbone
from .resnet import DEPTHS, ResNet, named_resnet
from .stacks import STACKS, Stack
from .width import scale_channels

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


def why_slow(bf16: bool, device: torch.device) -> str:
    """Return a warning if networks are to train in bf16 on a processor that has no such arithmetic; "" if not."""
    if not bf16 or device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ""
    return (
        "this processor has no bf16 arithmetic, so networks that train in bf16 take about ten times as long as in "
        "float32 (student.training or teacher.training)"
    )


NAMES = (*DEPTHS, *STACKS, "mobilenetv2")
"""The networks of this package that have a fixed name; the others are "convnet-W-W-..."."""


@in_float32
def build(
    name: str, channels: int, size: tuple[int, int], outputs: int, *, width: float = 1.0, stem: str = "cifar"
) -> Network:
    """Return a new network by name, with random initial weights of torch's global generator (:func:`seeded` fixes
    them).

    Args:
        name: "resnet18", "resnet10", "vgg11", "alexnet", "mobilenetv2", or "convnet-W-W-..." with one width per block,
            such as "convnet-16-32"; "timm:NAME" or "torchvision:NAME" if that package is installed; or your
            "package.module:factory". It is called as ``factory(channels, size)`` and returns a module from images
            [N, C, H, W] to features [N, D].
        channels: channels of the images.
        size: (height, width) of the images in pixels.
        outputs: number of outputs.
        width: factor on all channels of a network of this package. Default 1.0.
        stem: first layers of a ResNet: "cifar" (default; 3x3, stride 1, padding 2, no max-pool) or "imagenet"
            (torchvision's 7x7 with stride 2 and max-pool).

    Raises:
        InputError: for an unknown name, and for a network that has no features at that image size.
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


def build_stored(about: Mapping[str, Any], outputs: int) -> Network:
    """Return the network that the metadata of a file describe, with random initial weights.

    Args:
        about: the arguments of :func:`build` under "model", "channels", "size", "width" and "stem". Older files have
            neither of the last two, which are then 1.0 and "cifar".
        outputs: number of outputs.

    Raises:
        InputError: for a network that a function of the user makes, because code that a file names is not run.
    """
    name, channels, size = str(about["model"]), int(about["channels"]), tuple(int(side) for side in about["size"])
    place, colon, _ = name.partition(":")
    if colon and place not in LIBRARIES:
        raise InputError(
            f"its network was made by {name!r}, and code that a file names is not run; write a function without "
            "arguments that returns the network with these weights, and give package.module:function in place of the "
            "file"
        )
    height, breadth = size
    return build(
        name, channels, (height, breadth), outputs, width=about.get("width", 1.0), stem=about.get("stem", "cifar")
    )


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
        return ConvNet(channels, size, tuple(scale_channels(int(w), width) for w in widths.split("-")))
    raise InputError(
        f"model: expected {', '.join(NAMES)}, convnet-W-W (such as convnet-16-32), timm:NAME, torchvision:NAME or "
        f"package.module:factory, got {name!r}"
    )


@in_float32
def student(config: StudentConfig, channels: int, size: tuple[int, int], outputs: int) -> Network:
    """Return a new network as ``config`` describes it.

    Args:
        config: the settings of the student.
        channels: channels of the images.
        size: (height, width) of the images in pixels.
        outputs: number of outputs: the length of a representation.
    """
    network = build(config.model, channels, size, outputs, width=config.width, stem=config.stem)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.faster(config.compiled, config.training == "bf16")


@in_float32
def seeded(make: Callable[[], _M], seed: int) -> _M:
    """Return ``make()``, called with torch's global generator seeded; the generator's state is restored afterwards.

    Args:
        make: a function without arguments.
        seed: the seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch every GPU's generator too
        return make()
