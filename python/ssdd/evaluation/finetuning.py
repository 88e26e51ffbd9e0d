"""Fine-tuning: the whole pre-trained network, with a new last layer, on few labelled images of a target set."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifact import Preprocessing
from ..config import Diverged, FinetuneConfig, InputError
from ..data import ImageSet, crop_and_flip, gather, to_device
from ..models import Network, frozen, in_chunks, seeded
from .measures import why_no_probe


def share_of_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """Draw ``share`` of the rows of each class at random (rounded, at least one)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = [order[labels[order] == c] for c in labels.unique().tolist()]
    return torch.cat([rows[: max(1, round(share * len(rows)))] for rows in classes])


def finetune(
    network: Network, preprocessing: Preprocessing, data: ImageSet, config: FinetuneConfig, *, seed: int = 0
) -> float:
    """Train a copy of ``network`` with a new last layer on some labels of ``data``; return its test accuracy in
    percent.

    Args:
        network: the pre-trained network; it stays as it is.
        preprocessing: the normalisation of its images.
        data: the labelled images.
        config: ``config.share`` of the labels of each class are used.
        seed: seed of the last layer, the labelled images and every crop. Default 0.

    Raises:
        InputError: if ``data`` has no labels of at least two classes.
        Diverged: if the loss is no longer finite.
    """
    if why := why_no_probe(data):
        raise InputError(f"data: {why}")
    assert data.y_train is not None and data.y_test is not None
    rows = share_of_labels(data.y_train, config.share, seed)
    device = network.head.weight.device
    backbone = copy.deepcopy(network.backbone).requires_grad_(True)
    model = seeded(lambda: Network(backbone, network.dimension, data.classes), seed).train().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    g = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    batch = min(config.batch, len(rows))
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        if len(order) < batch:
            order = torch.randperm(len(rows), generator=g)
        part, order = rows[order[:batch]], order[batch:]
        pixels = gather(data.x_train, part, device).permute(0, 3, 1, 2).float().div(255)
        x = preprocessing.normalise(crop_and_flip(pixels, config.crop_pad, g))
        loss = F.cross_entropy(model(x), to_device(data.y_train[part], device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not math.isfinite(value := float(loss.detach())):
        raise Diverged(f"finetune: the loss is {value}; try a smaller finetune.lr (now {config.lr})")
    features = frozen(model)
    right = 0
    for images, labels in zip(data.x_test.split(500), data.y_test.split(500), strict=True):
        scores = model.head(in_chunks(features, preprocessing(to_device(images, device))))
        right += int((scores.argmax(1).cpu() == labels).sum())
    return 100 * right / len(data.y_test)
