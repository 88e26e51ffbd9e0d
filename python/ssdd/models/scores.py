"""How often a network's largest output is the label."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def accuracy(
    network: nn.Module,
    prepare: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    batch: int = 128,
    batch_statistics: bool = False,
) -> float:
    """Return the share of ``images``, uint8 [N, H, W, C], whose ``labels`` a classifier names, in percent.

    ``prepare`` makes the network's input of images. ``batch_statistics``: BatchNorm takes the statistics of each batch
    of ``batch`` images, as published code does, in place of those it learned. ``network`` is left as it was.
    """
    device = next(network.parameters()).device
    run = copy.deepcopy(network).train(batch_statistics)
    right = 0
    for part, wanted in zip(images.split(batch), labels.split(batch), strict=True):
        right += int((run(prepare(part.to(device))).argmax(1).cpu() == wanted).sum())
    return 100 * right / len(labels)
