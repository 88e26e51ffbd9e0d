"""A classifier of a labelled set: the teacher, and then the student, of target-data-free distillation."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..artifact import Preprocessing, read_safetensors, write_atomically
from ..checkpoint import Checkpoints
from ..config import ClassifierConfig, Diverged, InputError, Pulse, Report, as_dict, in_float32, silent
from ..data import (
    CPU,
    ImageSet,
    Order,
    crop,
    draw_crops,
    gather,
    repeatable,
    to_device,
    unmatched_classes,
)
from ..models import Network, accuracy, build, build_stored, find_factory, seeded
from .weights import is_weights

FORMAT = "ssdd.classifier"


@dataclass
class Classifier:
    """A network from normalised images [N, C, H, W] to class scores [N, ``classes``].

    Args:
        module: the network.
        preprocessing: the mean and std that its images are normalised with.
        classes: the number of classes.
        about: JSON values that are kept with the weights: how the network is built, and what it was trained on.
            Default {}.
    """

    module: nn.Module
    preprocessing: Preprocessing
    classes: int
    about: dict[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Return the SHA-256 of weights, structure and preprocessing, which identifies a classifier in checkpoints."""
        digest = hashlib.sha256(f"{self.module!r} {asdict(self.preprocessing)}".encode())
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def accuracy(self, data: ImageSet, batch: int = 128, batch_statistics: bool = False) -> float:
        """Return the accuracy on the test images of ``data``, in percent (see :func:`ssdd.models.accuracy`)."""
        assert data.y_test is not None
        return accuracy(
            self.module, self.preprocessing, data.x_test, data.y_test, batch=batch, batch_statistics=batch_statistics
        )

    def check(self, images: tuple[int, ...]) -> None:
        """Raise :class:`InputError` if it cannot classify images of that shape (C, H, W)."""
        with torch.no_grad():
            try:
                device = next(self.module.parameters()).device
                scores = self.module.eval()(torch.zeros(2, *images, device=device))
            except RuntimeError as error:
                raise InputError(f"teacher: cannot run on images of {list(images)}: {error}") from error
        if not isinstance(scores, Tensor) or scores.shape != (2, self.classes):
            came = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(f"teacher: expected scores [2, {self.classes}] for two images, got {came}")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a network that :func:`ssdd.build` made, to a .safetensors file."""
        meta = {"format": FORMAT, "preprocessing": asdict(self.preprocessing), "about": self.about}
        tensors = {key: value.cpu().contiguous() for key, value in self.module.state_dict().items()}
        return write_atomically(path, to_bytes(tensors, metadata={"ssdd": json.dumps(meta)}))

    @classmethod
    @in_float32
    def load(cls, path: str | os.PathLike[str]) -> Classifier:
        """Read what :meth:`save` wrote."""
        tensors, meta = read_safetensors(path)
        if meta.get("format") != FORMAT:
            raise InputError(
                f"teacher: {path}: expected a classifier written by `ssdd train-classifier`, "
                f"got format {meta.get('format')!r}"
            )
        try:
            about = meta["about"]
            network = build_stored(about, about["classes"])
            network.load_state_dict(tensors)
            preprocessing = Preprocessing.stored(meta)
        except InputError as error:
            raise InputError(f"teacher: {path}: {error}") from None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"teacher: {path}: damaged classifier file ({error})") from None
        return cls(network.eval(), preprocessing, about["classes"], about)

    @classmethod
    def from_network(
        cls,
        network: Network,
        preprocessing: Preprocessing,
        shape: tuple[int, int, int],
        model: str,
        width: float,
        stem: str,
        about: Mapping[str, Any],
    ) -> Classifier:
        """Return ``network`` as a classifier that can be saved.

        Args:
            network: the network that ``build(model, ..., width=width, stem=stem)`` made; it is put in eval mode.
            preprocessing: the mean and std that its images are normalised with.
            shape: (C, H, W) of its images.
            model: the name that ``build`` got.
            width: the factor on the channels that ``build`` got.
            stem: the stem that ``build`` got.
            about: more JSON values that are kept with the weights.
        """
        classes = network.head.out_features
        how = {"model": model, "width": width, "stem": stem, "channels": shape[0], "size": list(shape[1:])}
        return cls(network.eval(), preprocessing, classes, {**how, "classes": classes, **about})

    @classmethod
    @in_float32
    def named(cls, name: str) -> Classifier:
        """Return a classifier by name.

        Args:
            name: ``FILE.safetensors`` written by ``ssdd train-classifier``; or ``package.module:factory``, which is
                called without arguments and returns a :class:`Classifier`: any network with the preprocessing that it
                needs.
        """
        place, _, attribute = name.partition(":")
        if is_weights(name) or not attribute:
            return cls.load(name)
        try:
            made = find_factory(place, attribute)()
        except Exception as error:  # code of the user's: it may raise anything
            raise InputError(f"teacher: {name} cannot be made ({type(error).__name__}: {error})") from error
        if not isinstance(made, Classifier):
            raise InputError(f"teacher: {name}: expected an ssdd.Classifier, got {type(made).__name__}")
        return made


def check_labels(data: ImageSet) -> None:
    """Raise :class:`InputError` if a classifier cannot be trained and tested on ``data``."""
    for part in ("train", "test"):
        if getattr(data, f"y_{part}") is None:
            raise InputError(f"data: {data.name}: y_{part}: expected labels, to train a classifier; it has none")
    if why := unmatched_classes(data):
        raise InputError(f"data: {data.name} has {why}; a classifier needs every class in both parts")
    assert data.y_train is not None
    if (count := len(data.y_train.unique())) < 2:
        raise InputError(f"data: {data.name}: expected at least two classes, got {count}")


@repeatable()
@in_float32
def train_classifier(
    data: ImageSet,
    config: ClassifierConfig,
    *,
    seed: int = 0,
    report: Report = silent,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
) -> Classifier:
    """Train a classifier on the labels of ``data``.

    Args:
        data: the images, with labels of the same classes in both parts.
        config: the network and the settings of the training.
        seed: seed of the initial weights and of every random draw. Default 0.
        report: receives ``{"event": "classifier", "step", "steps", "loss"}`` once per epoch. Default: nothing is
            reported.
        checkpoints: where the state is kept; the training continues from the newest checkpoint, to the same bits as an
            uninterrupted one. Default: nowhere.
        device: where the network trains. Default: the CPU.

    Raises:
        InputError: if the labels do not suffice.
        Diverged: if the loss is no longer finite.
    """
    check_labels(data)
    network = seeded(
        lambda: build(config.model, data.channels, data.size, data.classes, width=config.width, stem=config.stem),
        seed,
    ).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    order = Order(len(data.x_train), config.batch, generator)
    steps, step = config.epochs * order.per_epoch, 0
    saved = (
        checkpoints.begin({"classifier": as_dict(config), "data": data.fingerprint, "seed": seed})
        if checkpoints
        else None
    )
    if saved is not None:
        step = restore(saved, network, optimizer, order)
    data = data.on(device)
    assert data.y_train is not None
    pulse = Pulse(report, "classifier", steps)
    network.train()
    while step < steps:
        pulse(step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = order.next()
        pixels = gather(data.x_train, rows, device).permute(0, 3, 1, 2).float().div(255)
        top, left, flipped = draw_crops(len(rows), config.crop_pad, generator)
        views = crop(pixels, config.crop_pad, (top, left, flipped if config.flip else torch.zeros_like(flipped)))
        loss = F.cross_entropy(network(data.preprocessing.normalise(views)), to_device(data.y_train[rows], device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % order.per_epoch == 0 or step == steps:
            value = check_finite(loss, "classifier", step, config.lr)
            report({"event": "classifier", "step": step, "steps": steps, "loss": value})
        save_if_due(checkpoints, step, network, optimizer, order, loss, config.lr)
    about = {"data": data.name, "classifier": as_dict(config), "seed": seed}
    shape = (data.channels, *data.size)
    return Classifier.from_network(network, data.preprocessing, shape, config.model, config.width, config.stem, about)


def check_finite(loss: Tensor, stage: str, step: int, lr: float) -> float:
    """Return the loss as a number. Raises :class:`Diverged` if it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise Diverged(f"{stage}: the loss is {value} at step {step}; try a smaller {stage}.lr (now {lr})")
    return value


def save_if_due(
    checkpoints: Checkpoints | None,
    step: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    order: Order,
    loss: Tensor,
    lr: float,
) -> None:
    """Write a checkpoint if one is due, or if the run must stop."""
    stop = checkpoints is not None and checkpoints.stop()
    if checkpoints is not None and (stop or checkpoints.due()):
        check_finite(loss, checkpoints.stage, step, lr)  # a state that diverged does not replace a good one
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": order.generator.get_state(),
            "left": order.left,
            "step": step,
        }
        checkpoints.save(step, state, stop)


def restore(state: dict[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, order: Order) -> int:
    """Load the state that :func:`save_if_due` wrote; return the number of steps that are done."""
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    order.generator.set_state(state["generator"])
    order.left = state["left"]
    return int(state["step"])
