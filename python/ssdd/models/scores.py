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
    """Return the percentage of images whose largest class score is that of the label.

    Args:
        network: maps its input to class scores [N, classes]; it stays as it is.
        prepare: makes the network's input from images.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        batch: images per batch. Default 128.
        batch_statistics: whether BatchNorm uses the statistics of each batch, as published code does, in place of the
            running statistics. Default False.
    """
    device = next(network.parameters()).device
    run = copy.deepcopy(network).train(batch_statistics)
    right = 0
    for part, part_labels in zip(images.split(batch), labels.split(batch), strict=True):
        right += int((run(prepare(part.to(device))).argmax(1).cpu() == part_labels).sum())
    return 100 * right / len(labels)
