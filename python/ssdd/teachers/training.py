"""Training of a teacher by any of the methods, from views of the training images alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoints
from ..config import Diverged, InputError, Pulse, Report, TeacherConfig, as_dict, in_float32, silent
from ..data import CPU, ImageSet, augment, gather, repeatable
from ..models import ConvNet, ResNet, seeded, why_slow
from .methods import METHODS, Method
from .teacher import Teacher, teacher_backbone


@dataclass
class Training:
    """Everything that changes while a teacher is trained. :meth:`state_dict` writes it, :meth:`load_state_dict`
    reads it."""

    backbone: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # rows of this epoch
    total: Tensor = field(default_factory=lambda: torch.zeros(()))  # loss of this epoch so far

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only. A run that continues from them gives the same bits as one that never
        stopped."""
        return {
            "backbone": self.backbone.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "order": self.order,
            "total": self.total,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        for name in ("backbone", "method", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.step, self.order = state["step"], state["order"]
        self.total = state["total"].to(next(self.backbone.parameters()).device)


def in_bf16(backbone: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return ``backbone`` computed in bfloat16 with channels last; its output is float32."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return backbone(x.contiguous(memory_format=torch.channels_last)).float()

    return forward


def new_backbone(data: ImageSet, config: TeacherConfig) -> ConvNet | ResNet:
    """Return the initial network of :func:`train_teacher`. Raises :class:`InputError` if it does not fit the data."""
    n = len(data.x_train)
    if n < 4:
        raise InputError(f"data: expected at least 4 training images for a teacher, got {n}")
    return seeded(lambda: teacher_backbone(config.backbone, data.channels, data.size, config.widths), config.seed)


@repeatable()
@in_float32
def train_teacher(
    data: ImageSet,
    config: TeacherConfig,
    report: Report = silent,
    checkpoints: Checkpoints | None = None,
    device: torch.device = CPU,
) -> Teacher:
    """Train a network by ``config.method`` on the training images alone, without labels.

    The same seed, machine and number of threads give the same bits.

    Args:
        data: the images.
        config: the settings of the training.
        report: receives ``{"event": "teacher", "step", "steps", "loss"}`` once per epoch, and ``{"event":
            "warning", "message"}`` if this processor has no bf16 and ``config.training`` asks for it. Default: nothing
            is reported.
        checkpoints: the training goes on from the newest one, to the same bits as if it had never stopped. Default:
            none are read or written.
        device: where the network trains and stays; all random draws are made in main memory. Default: the CPU.

    Raises:
        InputError: if network and data do not fit together.
        Diverged: if the loss is no longer finite.
        Stopped: after a request to stop, with a checkpoint written.
    """
    n, backbone = len(data.x_train), new_backbone(data, config)
    method = seeded(lambda: METHODS[config.method](backbone, backbone.dimension, config), config.seed + 1)
    backbone.to(device)
    method.to(device)
    bf16 = config.training == "bf16"
    if why := why_slow(bf16, device):
        report({"event": "warning", "message": why})
    if bf16:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = in_bf16(backbone) if bf16 else backbone
    parameters = [*backbone.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True if device.type == "cuda" else None
    )
    t = Training(backbone, method, optimizer, torch.Generator().manual_seed(config.seed))
    identity = {"teacher": as_dict(config), "data": data.fingerprint}
    saved = checkpoints.begin(identity, ("teacher.epochs", config.steps(n))) if checkpoints else None
    if saved is not None:
        t.load_state_dict(saved)
    data = data.on(device)
    batch = min(config.batch, n)
    per_epoch = n // batch  # an epoch's incomplete batch is dropped, as the correlation is taken over a batch
    steps = config.steps(n)
    pulse = Pulse(report, "teacher", steps)
    while t.step < steps:
        pulse(t.step)
        i = t.step % per_epoch
        if i == 0:
            t.order, t.total = torch.randperm(n, generator=t.generator), torch.zeros((), device=device)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(t.step / steps)
        rows = t.order[i * batch : (i + 1) * batch]
        pixels = gather(data.x_train, rows, device).permute(0, 3, 1, 2).float().div(255)
        views = torch.cat([augment(pixels, config.augment, t.generator) for _ in range(2)])
        loss = method.loss(forward, data.preprocessing.normalise(views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(backbone, t.step / steps)
        t.total += loss.detach()
        t.step += 1
        if t.step % per_epoch == 0:
            report({"event": "teacher", "step": t.step, "steps": steps, "loss": _finite(t, config, per_epoch)})
        stop = checkpoints is not None and checkpoints.stop()
        if checkpoints is not None and (stop or checkpoints.due() or t.step == steps):
            _finite(t, config, per_epoch)  # a diverged state must not replace a good one
            checkpoints.save(t.step, t.state_dict(), stop)
    about = {
        "method": config.method,
        "backbone": config.backbone,
        "widths": list(config.widths),
        "channels": data.channels,
        "size": list(data.size),
        "data": data.name,
    }
    return Teacher(backbone, data.preprocessing, about)


def _finite(t: Training, config: TeacherConfig, per_epoch: int) -> float:
    """Return the mean loss of this epoch so far. Raises :class:`Diverged` if it is not finite."""
    mean = float(t.total) / ((t.step - 1) % per_epoch + 1)
    if not math.isfinite(mean):
        raise Diverged(f"teacher: the loss is {mean} at step {t.step}; try a smaller teacher.lr ({config.lr})")
    return mean


def _schedule(fraction: float) -> float:
    """Return the factor of the learning rate after ``fraction`` of the steps: warm-up over one tenth, then a cosine
    to 0."""
    return fraction / 0.1 if fraction < 0.1 else 0.5 * (1 + math.cos(math.pi * (fraction - 0.1) / 0.9))
