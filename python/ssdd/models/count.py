"""What a network costs: its parameters and its multiply-adds per image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .network import Network


def count_parameters(network: Network) -> int:
    """Return the number of weights of the backbone, without the last layer."""
    return sum(p.numel() for p in network.backbone.parameters())


@torch.no_grad()
def count_multiply_adds(module: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image; the module stays as it is."""
    total = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += out.numel() * layer.in_features
        elif isinstance(layer, nn.Conv2d):
            total += out.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules()]
    mode = module.training
    try:
        module.eval()(torch.zeros(1, channels, *size))
    finally:
        module.train(mode)
        for hook in hooks:
            hook.remove()
    return total
