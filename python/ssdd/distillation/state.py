"""The state of a distillation: everything that changes while it runs, and how it is written and read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data import to_device
from .methods import Method
from .pool import Pool
from .storage import STORAGES, Source, Storage


@dataclass
class State:
    """All that a resumed run needs. :meth:`state_dict` writes it, :meth:`load_state_dict` reads it."""

    storage: Storage  # what X_s and Y_s follow from
    learned: dict[str, Tensor]  # what the method learns beside them
    optimizer: torch.optim.AdamW
    pool: Pool
    generator: torch.Generator
    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    good: tuple[Tensor, ...] | None = None  # the storage's values at the last log line with a finite loss
    best: tuple[Any, ...] | None = None  # read-out, step, and the storage's values at the best read-out

    @property
    def x_s(self) -> Tensor:
        """X_s in pixels, [S, C, H, W]."""
        return self.storage.images()

    @property
    def y_s(self) -> Tensor:
        """Y_s, [T S, C]: the targets of X_s and of its transforms."""
        return self.storage.targets()

    def values(self) -> tuple[Tensor, ...]:
        """Return copies of what X_s and Y_s follow from."""
        return tuple(value.detach().clone() for value in self.storage.values.values())

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values only. A run that continues from them gives the same bits as one that never
        stopped."""
        return {
            **dict(zip(self.storage.values, self.values(), strict=True)),
            "learned": {name: value.detach().clone() for name, value in self.learned.items()},
            "optimizer": self.optimizer.state_dict(),
            "pool": self.pool.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "losses": list(self.losses),
            "loss_sum": self.loss_sum.clone(),
            "snapshots": dict(self.snapshots),
            "good": self.good,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        with torch.no_grad():
            for name, value in self.storage.values.items():
                value.copy_(state[name])
            for name, value in state.get("learned", {}).items():  # a checkpoint of version 0.1 has none
                self.learned[name].copy_(value)
        there = self.loss_sum.device
        times = [group["times"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, factor in zip(self.optimizer.param_groups, times, strict=True):
            group["times"] = factor  # a checkpoint of version 0.1 has none
        self.pool.load_state_dict(state["pool"])
        self.generator.set_state(state["generator"])
        self.step, self.losses = state["step"], list(state["losses"])
        self.loss_sum = state["loss_sum"].to(there, copy=True)
        self.snapshots = {step: x.to(there) for step, x in state["snapshots"].items()}
        good = state["good"]
        self.good = None if good is None else tuple(value.to(there) for value in good)
        best = state["best"]
        self.best = None if best is None else (*best[:2], *(value.to(there) for value in best[2:]))


def start(method: Method, rows: Tensor) -> State:
    """Return the state before the first step: X_s and Y_s of the training images ``rows``, and an empty pool."""
    job, config = method.job, method.config
    pixels = job.data.x_train[rows].permute(0, 3, 1, 2).float().div(255).contiguous()
    y_s = method.start(method.targets_of(rows, pixels))
    source = Source(config, job.data, method.targets, job.seed + 3)
    storage = STORAGES[config.storage].make(source, pixels, y_s, method.learns_targets, job.device)
    groups: list[dict[str, Any]] = [{"params": list(storage.parameters().values()), "times": 1.0}]
    learned = {}
    for name, (value, lr) in method.parameters().items():
        learned[name] = to_device(value, job.device).requires_grad_()
        times = lr / config.lr if config.lr else 0.0
        groups.append({"params": [learned[name]], "times": times, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(
        groups, lr=config.lr, weight_decay=config.weight_decay, fused=True if job.device.type == "cuda" else None
    )  # fused on CUDA: otherwise its step counter is read on the host
    generator = torch.Generator().manual_seed(job.seed)
    pool = method.networks(generator)
    return State(storage, learned, optimizer, pool, generator, loss_sum=torch.zeros((), device=job.device))
