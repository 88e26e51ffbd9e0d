"""Fine-tuning: the whole pre-trained network, with a new last layer, on labelled images of a target set."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifact import Preprocessing
from ..config import Diverged, FinetuneConfig, InputError, Pulse, Report, in_float32, silent
from ..data import ImageSet, Order, crop_and_flip, gather, repeatable, to_device, unmatched_classes
from ..models import Network, accuracy, seeded
from .measures import why_no_probe
from .pretraining import LOG_EVERY

SMALL_SET = 20_000
"""A target of fewer training images takes ``FinetuneConfig.small_set_steps``."""


def share_of_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """Draw ``share`` of the rows of each class at random (rounded, at least one)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = [order[labels[order] == c] for c in labels.unique().tolist()]
    return torch.cat([rows[: max(1, round(share * len(rows)))] for rows in classes])


def steps_for(data: ImageSet, config: FinetuneConfig) -> int:
    """Return the number of steps that fine-tuning on ``data`` takes."""
    return config.small_set_steps or config.steps if len(data.x_train) < SMALL_SET else config.steps


def why_no_transfer(data: ImageSet, config: FinetuneConfig | None = None) -> str:
    """Say why ``data`` cannot be a target of fine-tuning, in one line; "" if it can.

    Beside what a probe needs, its training and its test images must be of the same classes
    (``config.untested_classes`` "kept": but for classes without test images).
    """
    if why := why_no_probe(data):
        return why
    only = unmatched_classes(data, untested=config is not None and config.untested_classes == "kept")
    return f"{data.name}: no fine-tuning, as it has {only}" if only else ""


def check_targets(targets: dict[str, ImageSet], config: FinetuneConfig) -> None:
    """Raise :class:`InputError` if the networks are to be fine-tuned and a target is not fit for it."""
    for name, data in targets.items():
        if not config.share or not (why := why_no_transfer(data, config)):
            continue
        advice = "give a set with labels of the same classes in both parts, or set finetune.share to 0"
        if "no test images of class" in why:
            advice += ", or set finetune.untested_classes to kept: the class is trained on and never tested"
        raise InputError(f"target {name}: {why}; {advice}")


@repeatable()
@in_float32
def finetune(
    network: Network,
    preprocessing: Preprocessing,
    data: ImageSet,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    report: Report = silent,
) -> float:
    """Train a copy of ``network`` with a new last layer on some labels of ``data``; return its test accuracy in
    percent.

    Args:
        network: the pre-trained network; it stays as it is.
        preprocessing: the normalisation that the network was pre-trained with, used if ``config.normalise`` is
            "source".
        data: the labelled images.
        config: ``config.share`` of the labels of each class are used.
        seed: seed of the last layer, the labelled images and every crop. Default 0.
        report: receives ``{"event": "finetune", "set", "step", "steps", "loss"}``. Default: nothing is reported.

    Raises:
        InputError: if ``data`` has no labels of at least two classes.
        Diverged: if the loss is no longer finite.
    """
    if why := why_no_probe(data):
        raise InputError(f"data: {why}")
    assert data.y_train is not None and data.y_test is not None
    preprocessing = data.preprocessing if config.normalise == "target" else preprocessing
    labelled = share_of_labels(data.y_train, config.share, seed)
    device = network.head.weight.device
    backbone = copy.deepcopy(network.backbone).requires_grad_(True)
    model = seeded(lambda: Network(backbone, network.dimension, data.classes), seed).train().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    g = torch.Generator().manual_seed(seed)
    order = Order(len(labelled), config.batch, g, config.last_batch == "kept")
    steps = steps_for(data, config)
    pulse = Pulse(report, "finetune", steps)
    for step in range(steps):
        pulse(step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = labelled[order.next()]
        pixels = gather(data.x_train, rows, device).permute(0, 3, 1, 2).float().div(255)
        x = preprocessing.normalise(crop_and_flip(pixels, config.crop_pad, g))
        loss = F.cross_entropy(model(x), to_device(data.y_train[rows], device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            if not math.isfinite(value := float(loss.detach())):
                raise Diverged(
                    f"finetune: the loss is {value} at step {step + 1}; try a smaller finetune.lr (now {config.lr})"
                )
            report({"event": "finetune", "set": data.name, "step": step + 1, "steps": steps, "loss": value})
    return accuracy(model, preprocessing, data.x_test, data.y_test)
