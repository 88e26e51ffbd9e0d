"""Target-data-free knowledge distillation: a student learns a classifier's soft labels of distilled images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifact import DistilledSet
from ..checkpoint import Checkpoints, fingerprint
from ..config import InputError, KdConfig, Pulse, Report, as_dict, in_float32, silent
from ..data import CPU, ImageSet, Order, apply_dsa, draw_dsa, gather, repeatable
from ..models import Network, seeded
from .classifier import Classifier, check_finite, restore, save_if_due


def check_kd(teacher: Classifier, pairs: DistilledSet, data: ImageSet) -> None:
    """Raise :class:`InputError` if teacher, distilled set and test images do not fit together."""
    shape = tuple(pairs.images.shape[1:])
    channels = len(teacher.preprocessing.mean)
    if channels != shape[0]:
        raise InputError(f"teacher: it classifies images of {channels} channels, the distilled set has {shape[0]}")
    size = teacher.about.get("size")
    if size is not None and list(shape[1:]) != list(size):
        raise InputError(
            f"teacher: it was trained on images of {size[1]}x{size[0]}, the distilled set has {shape[2]}x{shape[1]}; "
            "train it with ssdd train-classifier --like ARTIFACT"
        )
    teacher.check(shape)
    if (data.channels, *data.size) != shape:
        raise InputError(
            f"data: expected images of {list(shape)} as the distilled set has, got {[data.channels, *data.size]}"
        )
    if data.y_test is None:
        raise InputError(f"data: {data.name}: expected labels of the test images, to measure on; it has none")
    classes = max(data.classes, int(data.y_test.max()) + 1)
    if classes != teacher.classes:
        raise InputError(
            f"teacher: it was trained for another task: it tells {teacher.classes} classes apart, "
            f"{data.name} has {classes}"
        )


@repeatable()
@in_float32
def distil_knowledge(
    teacher: Classifier,
    pairs: DistilledSet,
    make: Callable[[int], Network],
    config: KdConfig,
    *,
    pretrain: Callable[[Network], object] = lambda network: None,
    recipe: Mapping[str, Any] | None = None,
    seed: int = 0,
    report: Report = silent,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
) -> Network:
    """Train a student of ``teacher`` without images and labels of the teacher's training set.

    Args:
        teacher: the classifier; it stays as it is.
        pairs: the distilled set.
        make: ``make(outputs)`` returns a network with random initial weights.
        config: the settings of the distillation.
        pretrain: trains a network in place on ``pairs``; the student has its backbone and a new last layer. It is not
            called if ``config.images`` is "noise". Default: no pre-training.
        recipe: JSON values that say how the student is made, for checkpoints. Default {}.
        seed: seed of the initial weights and of every random draw. Default 0.
        report: receives ``{"event": "kd", "step", "steps", "loss"}`` once per epoch. Default: nothing is reported.
        checkpoints: where the state is kept; the training continues from the newest checkpoint, to the same bits as an
            uninterrupted one. Default: nowhere.
        device: where the networks run. Default: the CPU.

    Returns:
        The student, in eval mode.

    Raises:
        Diverged: if the loss is no longer finite.
    """
    images = pairs.images.to(device)
    order = Order(len(images), config.batch, torch.Generator().manual_seed(seed))
    identity = {"kd": as_dict(config), "teacher": teacher.key(), "seed": seed, "recipe": dict(recipe or {})}
    identity |= {"images": fingerprint(pairs.images), "targets": fingerprint(pairs.targets)}
    saved = checkpoints.begin(identity) if checkpoints else None
    student = seeded(lambda: make(teacher.classes), seed).to(device)
    if saved is None and config.images == "distilled":
        first = seeded(lambda: make(pairs.targets.shape[1]), seed).to(device)
        pretrain(first)
        student.backbone.load_state_dict(first.backbone.state_dict())
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.first_lr, weight_decay=config.weight_decay)
    step = 0 if saved is None else restore(saved, student, optimizer, order)
    guide = copy.deepcopy(teacher.module).to(device).requires_grad_(False).train(config.mode == "train")
    steps = config.epochs * order.per_epoch
    pulse = Pulse(report, "kd", steps)
    student.train()
    while step < steps:
        pulse(step)
        for group in optimizer.param_groups:
            epoch = step // order.per_epoch
            group["lr"] = config.first_lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        x = make_input(gather(images, order.next(), device), teacher, config, order.generator)
        with torch.no_grad():
            soft = guide(x).softmax(1)
        loss = F.cross_entropy(student(x), soft)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % order.per_epoch == 0:
            report(
                {"event": "kd", "step": step, "steps": steps, "loss": check_finite(loss, "kd", step, config.first_lr)}
            )
        save_if_due(checkpoints, step, student, optimizer, order, loss, config.first_lr)
    return student.eval()


def make_input(pixels: Tensor, teacher: Classifier, config: KdConfig, generator: torch.Generator) -> Tensor:
    """Return the networks' input for a batch of distilled images, float [N, C, H, W] in [0, 1]."""
    if config.images == "noise":
        return torch.randn(pixels.shape, generator=generator).to(pixels.device)
    view = apply_dsa(pixels, draw_dsa(generator, len(pixels)))
    return teacher.preprocessing.normalise(view) if config.input == "normalised" else view
