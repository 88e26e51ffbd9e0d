"""Pre-training on a distilled set: what the artifact is for (section 4.1 of the paper)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes

from ..artifact import DistilledSet, write_atomically
from ..config import Diverged, InputError, PretrainConfig, Pulse, Report, as_dict, silent
from ..data import gather, repeatable
from ..models import Network

LOG_EVERY = 50


@repeatable()
def pretrain(
    network: Network, pairs: DistilledSet, config: PretrainConfig, *, seed: int = 0, report: Report = silent
) -> Network:
    """Train ``network`` (in place, and returned, in eval mode) to map the images of ``pairs`` to their targets.

    It trains where it is. Mean squared error, SGD, no augmentation; batches of ``config.batch`` from a shuffled order
    (the whole set where it is smaller). Reports ``{"event": "pretrain", "step", "steps", "loss"}``.
    """
    outputs = network.head.out_features
    if outputs != pairs.targets.shape[1]:
        raise InputError(f"network: expected {pairs.targets.shape[1]} outputs, as the targets have, got {outputs}")
    device = network.head.weight.device
    x, y = pairs.inputs().to(device), pairs.targets.to(device)
    centre = y.mean(0)
    if config.contrast != 1:
        y = centre + config.contrast * (y - centre)
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    network.train()
    order = torch.empty(0, dtype=torch.int64)
    pulse = Pulse(report, "pretrain", config.steps)
    for step in range(config.steps):
        pulse(step)
        if config.schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        if len(x) <= config.batch:
            x_b, y_b = x, y
        else:
            if len(order) < config.batch:
                order = torch.randperm(len(x), generator=g)
            rows, order = order[: config.batch], order[config.batch :]
            x_b, y_b = gather(x, rows, device), gather(y, rows, device)
        loss = F.mse_loss(network(x_b), y_b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise Diverged(
                    f"pretrain: the loss is {value} at step {step + 1}; try a smaller pretrain.lr (now {config.lr})"
                )
            report({"event": "pretrain", "step": step + 1, "steps": config.steps, "loss": value})
    if config.contrast != 1:
        with torch.no_grad():
            network.head.weight /= config.contrast
            network.head.bias.sub_(centre).div_(config.contrast).add_(centre)
    return network.eval()


def save_backbone(
    network: Network,
    path: str | os.PathLike[str],
    pairs: DistilledSet,
    config: PretrainConfig,
    *,
    model: str,
    seed: int,
    width: float = 1.0,
    stem: str = "cifar",
) -> Path:
    """Write the weights of ``network`` without its last layer to ``path`` (.safetensors), and how they came about.

    Their names are those of ``build(model, ..., width=width, stem=stem).backbone``: torchvision's, for a ResNet.
    ``pairs``, ``config`` and ``seed`` are what it was pre-trained with.
    """
    channels, *size = pairs.images.shape[1:]
    meta = {
        "format": "ssdd.backbone",
        "model": model,
        "width": width,
        "stem": stem,
        "channels": channels,
        "size": size,
        "seed": seed,
        "dimension": network.dimension,
        "preprocessing": asdict(pairs.preprocessing),
        "source": pairs.source,
        "pretrain": as_dict(config),
    }
    weights = {key: value.cpu().contiguous() for key, value in network.backbone.state_dict().items()}
    return write_atomically(path, to_bytes(weights, metadata={"ssdd": json.dumps(meta)}))
