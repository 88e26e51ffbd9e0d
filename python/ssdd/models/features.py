"""Features as a function of the images alone: the network is in eval mode, and its weights get no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .convnet import ConvNet
from .network import Network

CHUNK = 128
"""Images per chunk on a CPU when no gradient is kept. What a layer writes is then still in the cache when the next
one reads it (512 CIFAR images through 32-64-128 on one core: 0.14 s, in one piece 0.23 s)."""
CHUNK_BYTES = 2**22
"""The same for several networks at once, whose layers are wider: bytes that the first layer writes per chunk."""


def frozen(network: Network) -> Callable[[Tensor], Tensor]:
    """Return ``network.features`` in eval mode with constant weights, a function from images [N, C, H, W] to features
    [N, D].

    The gradient flows to the images. BatchNorms of a ConvNet are folded into its convolutions, which gives the same
    numbers up to rounding. Weights and statistics are read now, so call this again after a training step.
    """
    backbone = network.backbone
    if isinstance(backbone, ConvNet):
        return _fold_batchnorms(backbone, network.compiled)
    state = {name: value.detach() for name, value in [*backbone.named_parameters(), *backbone.named_buffers()]}
    backbone.eval()
    return lambda x: functional_call(backbone, state, (x,))


def batch_features(network: Network) -> Callable[[Tensor], Tensor]:
    """``network.features`` in train mode, with its weights as constants: BatchNorm takes the statistics of its batch.

    Running statistics stay as they are. The gradient flows to the images, through these statistics too.
    """
    backbone = network.backbone
    weights = {name: value.detach() for name, value in backbone.named_parameters()}

    def features(x: Tensor) -> Tensor:
        backbone.train()
        statistics = {name: value.clone() for name, value in backbone.named_buffers()}
        return functional_call(backbone, weights | statistics, (x,))

    return features


@torch.no_grad()
def in_chunks(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``features(x)`` without gradients; a CPU computes ``CHUNK`` images at a time."""
    return features(x) if x.device.type != "cpu" else torch.cat([features(part) for part in x.split(CHUNK)])


def frozen_together(networks: Sequence[Network]) -> Callable[[Tensor], Tensor]:
    """Return the features of B networks as one function, from images [N, C, H, W] to features [N, B, D].

    Each network's features are those of :func:`frozen` up to rounding. ConvNets of one shape run as one network of B
    groups. Without gradients, a CPU computes few images at a time.
    """
    backbones = [network.backbone for network in networks]
    folded = [_folded_layers(backbone) for backbone in backbones if isinstance(backbone, ConvNet)]
    if len(folded) < len(backbones) or len({_shape(backbone) for backbone in backbones}) > 1:
        features = [frozen(network) for network in networks]
        return lambda x: torch.stack([f(x) if torch.is_grad_enabled() else in_chunks(f, x) for f in features], 1)
    layers = [_joined(layer) for layer in zip(*folded, strict=True)]
    pooled, count = bool(backbones[0].pooled), len(networks)

    def run(x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return _run_groups(x, layers, count, pooled)
        per_image = len(layers[0][0]) * x[0, 0].numel() * x.element_size()
        parts = x.split(max(8, CHUNK_BYTES // per_image))
        return torch.cat([_run_groups(part, layers, count, pooled) for part in parts])

    return run


def _shape(backbone: nn.Module) -> tuple[object, ...]:
    """Return what two ConvNets that run together have in common."""
    return (backbone.pooled, *(weight.shape for weight in backbone.parameters()))


Layer = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""


def _joined(layers: Sequence[Layer]) -> Layer:
    """Return the convolution that computes all of ``layers``. On a CPU its channels lie side by side in memory, where
    pooling is up to fifteen times as fast."""
    weight, bias = torch.cat([weight for weight, _ in layers]), torch.cat([bias for _, bias in layers])
    if weight.device.type == "cpu":
        weight = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
    return weight, bias


def _run_groups(x: Tensor, layers: Sequence[Layer], count: int, pooled: bool) -> Tensor:
    """Return the features [N, count, D] of networks whose layers are joined."""
    for i, (weight, bias) in enumerate(layers):
        # The first layers see the same images; every later one sees the channels of its own network.
        x = F.conv2d(x, weight, bias, padding=1, groups=count if i else 1)
        x = F.avg_pool2d(F.relu_(x), 2)
    x = x.unflatten(1, (count, -1))
    return x.mean((3, 4)) if pooled else x.flatten(2)


def _fold_batchnorms(backbone: ConvNet, compiled: bool) -> Callable[[Tensor], Tensor]:
    layers = _folded_layers(backbone)
    run = _compile_layers() if compiled else _run_layers
    return lambda x: run(x, layers, backbone.pooled)


def _folded_layers(backbone: ConvNet) -> list[Layer]:
    """Return the convolutions of ``backbone`` with its BatchNorms folded in."""
    layers: list[Layer] = []
    blocks = list(backbone.blocks)
    for convolution, norm in zip(blocks[::4], blocks[1::4], strict=True):
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert convolution.bias is not None and norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        weight = convolution.weight.detach() * scale.view(-1, 1, 1, 1)
        layers.append((weight, (convolution.bias.detach() - norm.running_mean) * scale + norm.bias.detach()))
    return layers


def _run_layers(x: Tensor, layers: list[Layer], pooled: bool) -> Tensor:
    for weight, bias in layers:
        x = F.avg_pool2d(F.relu_(F.conv2d(x, weight, bias, padding=1)), 2)
    return x.mean((2, 3)) if pooled else x.flatten(1)


@cache
def _compile_layers() -> Callable[..., Tensor]:
    """Compile :func:`_run_layers` once for all networks, as the weights are its arguments."""
    return torch.compile(_run_layers)
