"""Pre-training on a distilled set, which is what the set is made for (section 4.1 of the paper)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..artifact import DistilledSet, write_atomically
from ..config import Diverged, InputError, PretrainConfig, Pulse, Report, as_dict, from_dict, in_float32, silent
from ..data import Order, gather, repeatable
from ..models import Network, why_slow

LOG_EVERY = 50


class Keeper(Protocol):
    """Where a training keeps its state, as :class:`ssdd.Checkpoints` does."""

    @property
    def stop(self) -> Callable[[], bool]: ...

    def begin(self, identity: dict[str, Any]) -> dict[str, Any] | None: ...

    def due(self) -> bool: ...

    def save(self, step: int, state: dict[str, Any], stop: bool = False) -> None: ...


def recipe_of(pairs: DistilledSet) -> PretrainConfig:
    """The pre-training that ``pairs`` were made for. Raises :class:`InputError` if they carry none."""
    if not pairs.recipe:
        raise InputError("config: these pairs carry no recipe for pre-training; give a PretrainConfig")
    return from_dict(PretrainConfig(), pairs.recipe)


@repeatable()
@in_float32
def pretrain(
    network: Network,
    pairs: DistilledSet,
    config: PretrainConfig | None = None,
    *,
    seed: int = 0,
    report: Report = silent,
    checkpoints: Keeper | None = None,
) -> Network:
    """Train ``network`` in place to map the images of ``pairs`` to their targets, by SGD on the mean squared error.

    Args:
        network: the network, on the device it trains on; its outputs must be as many as the targets' numbers.
        pairs: the distilled set.
        config: steps, learning rate and batches, which are taken from a shuffled order (the whole set if it is
            smaller). Default: :func:`recipe_of` the pairs.
        seed: seed of the order. Default 0.
        report: receives ``{"event": "pretrain", "step", "steps", "loss"}``, and ``{"event": "warning", "message"}`` if
            ``network`` trains in bf16 and this processor has none. Default: nothing is reported.
        checkpoints: where the state is kept; the training goes on from the newest checkpoint, to the same bits as if it
            had never stopped. Default: nowhere.

    Returns:
        The same network, in eval mode.

    Raises:
        InputError: if the number of outputs is not that of the targets, or if there is no recipe.
        Diverged: if the loss is no longer finite.
        Stopped: after a request to stop, with a checkpoint written.
    """
    config = recipe_of(pairs) if config is None else config
    outputs = network.head.out_features
    if outputs != pairs.targets.shape[1]:
        raise InputError(f"network: expected {pairs.targets.shape[1]} outputs, as the targets have, got {outputs}")
    device = network.head.weight.device
    if why := why_slow(network.half_training, device):
        report({"event": "warning", "message": why})
    x, y = pairs.inputs().to(device), pairs.targets.to(device)
    centre = y.mean(0)
    if config.contrast != 1:
        y = centre + config.contrast * (y - centre)
    order = Order(len(x), config.batch, torch.Generator().manual_seed(seed), keep_last=False)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    saved = checkpoints.begin(_identity(network, pairs, config, seed)) if checkpoints else None
    begun = 0 if saved is None else _restore(saved, network, optimizer, order)
    network.train()
    pulse = Pulse(report, "pretrain", config.steps)
    for step in range(begun, config.steps):
        pulse(step)
        if config.schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        if len(x) <= config.batch:
            x_b, y_b = x, y
        else:
            rows = order.next()
            x_b, y_b = gather(x, rows, device), gather(y, rows, device)
        loss = F.mse_loss(network(x_b), y_b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
            value = _finite(loss, step + 1, config)
            report({"event": "pretrain", "step": step + 1, "steps": config.steps, "loss": value})
        stop = checkpoints is not None and checkpoints.stop()
        if checkpoints is not None and (stop or checkpoints.due()):
            _finite(loss, step + 1, config)  # a state that diverged does not replace a good one
            checkpoints.save(step + 1, _state(network, optimizer, order, step + 1), stop)
    if config.contrast != 1:
        with torch.no_grad():
            network.head.weight /= config.contrast
            network.head.bias.sub_(centre).div_(config.contrast).add_(centre)
    return network.eval()


def _finite(loss: Tensor, step: int, config: PretrainConfig) -> float:
    """Return the loss as a number. Raises :class:`Diverged` if it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise Diverged(f"pretrain: the loss is {value} at step {step}; try a smaller pretrain.lr (now {config.lr})")
    return value


def _identity(network: Network, pairs: DistilledSet, config: PretrainConfig, seed: int) -> dict[str, Any]:
    """Return JSON values that say which pre-training this is."""
    contents = {"network": repr(network).encode()}
    for name, values in (("images", pairs.images), ("targets", pairs.targets)):
        contents[name] = values.cpu().contiguous().numpy().tobytes()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return {"pretrain": as_dict(config), "seed": seed, **digests}


def _state(network: Network, optimizer: torch.optim.Optimizer, order: Order, step: int) -> dict[str, Any]:
    """Return everything that changes during the training, for :func:`_restore`."""
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": order.generator.get_state(),
        "left": order.left,
        "step": step,
    }


def _restore(state: dict[str, Any], network: Network, optimizer: torch.optim.Optimizer, order: Order) -> int:
    """Load what :func:`_state` returned; return the number of steps that are done."""
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    order.generator.set_state(state["generator"])
    order.left = state["left"]
    return int(state["step"])


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
    """Write the weights of ``network`` without its last layer, with the settings they were trained by.

    Args:
        network: the pre-trained network; the names of its weights are those of ``build(model, ..., width=width,
            stem=stem).backbone``, torchvision's for a ResNet.
        path: the file (.safetensors).
        pairs: the distilled set it was pre-trained on.
        config: the settings of the pre-training.
        model: the name that ``build`` got.
        seed: the seed of the pre-training.
        width: the factor on the channels that ``build`` got. Default 1.0.
        stem: the stem that ``build`` got. Default "cifar".
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
