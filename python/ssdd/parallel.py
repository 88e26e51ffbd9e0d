"""One run on several processes (``torchrun``): every process has the same state and computes a part of each step.

``"batch"``: all processes use the same networks, each its part of the real batch. ``"networks"``: all use the same real
batch, each its part of the networks that a step draws. In both modes the gradient is the mean over the whole, each part
with its weight, so that the run equals that of one process up to the order of a sum. One process trains a network of
the pool and sends it to the others, so all hold the same bits after each step, on any hardware.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from .config import InputError

ParallelMode = Literal["batch", "networks"]
PARALLEL_MODES = get_args(ParallelMode)

_T = TypeVar("_T")


class ProcessLost(RuntimeError):
    """Another process of the run has ended. This one is in the middle of a step: resume the run from a checkpoint."""


@dataclass(frozen=True)
class Processes:
    """This process's place among those that share a run. The default is a run on its own, which sends nothing.

    Args:
        rank: the number of this process. Default 0.
        size: the number of processes. Default 1.
        mode: what they share, "batch" (default) or "networks".
    """

    rank: int = 0
    size: int = 1
    mode: ParallelMode = "batch"

    @property
    def writes(self) -> bool:
        """True if this is the one process that writes files and reports."""
        return self.rank == 0

    def owner(self, i: int) -> int:
        """Return the rank of the process that trains the i-th network of a draw, or the i-th new one of the pool."""
        return i % self.size

    def rows(self, n: int) -> slice:
        """Return this process's part of ``n`` real images."""
        if self.mode == "networks":
            return slice(0, n)
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def networks(self, drawn: Sequence[_T]) -> list[_T]:
        """Return this process's part of the networks drawn."""
        return list(drawn[self.rank :: self.size] if self.mode == "networks" else drawn)

    def weight(self, n: int, networks: int) -> float:
        """Return the weight of this process's part in the mean over ``n`` real images and ``networks`` networks."""
        if self.mode == "networks":
            return len(range(self.rank, networks, self.size)) / networks
        part = self.rows(n)
        return (part.stop - part.start) / n

    def combine(
        self, loss: Tensor, gradients: Sequence[Tensor], weight: float, stop: bool, read_stop: bool = True
    ) -> tuple[Tensor, bool]:
        """Make ``gradients`` (in place) and ``loss`` their weighted sums over the processes, in a single message.

        ``stop`` becomes True for all processes if it is True for one. ``read_stop=False`` does not read that answer,
        which would synchronise with the device, and returns False. Raises :class:`ProcessLost`.
        """
        if self.size == 1:
            return loss, stop
        parts = [loss.reshape(1), *(g.reshape(-1) for g in gradients)]
        message = torch.cat([torch.cat(parts) * weight, loss.new_full((1,), float(stop))])
        self._all(lambda: dist.all_reduce(message))
        at = 1
        for gradient in gradients:
            gradient.copy_(message[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        return message[0], read_stop and bool(message[-1] > 0)

    def agree(self, stop: bool) -> bool:
        """Return True if any process passes True. Raises :class:`ProcessLost`."""
        return self.combine(torch.zeros(()), [], 1.0, stop)[1]

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Set ``tensors`` (in place) to the values of the process ``source``. Raises :class:`ProcessLost`."""
        if self.size == 1:
            return
        floats = [t for t in tensors if t.is_floating_point()]
        with torch.no_grad():
            if floats:
                message = torch.cat([t.detach().reshape(-1) for t in floats])
                self._all(lambda: dist.broadcast(message, source))
                for tensor, part in zip(floats, message.split([t.numel() for t in floats]), strict=True):
                    tensor.copy_(part.view(tensor.shape))
            for tensor in tensors:
                if not tensor.is_floating_point():  # BatchNorm's counters
                    self._all(partial(dist.broadcast, tensor, source))

    def wait(self) -> None:
        """Wait until all processes are here. Raises :class:`ProcessLost`."""
        if self.size > 1:
            self._all(dist.barrier)

    def _all(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0][:200]
            raise ProcessLost(
                f"one of the {self.size} processes of this run has ended; process {self.rank} cannot go on ({why})"
            ) from None


ALONE = Processes()


LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables that ``torchrun`` sets beside ``WORLD_SIZE``, and that joining the processes needs."""


def world_size() -> int:
    """Return the number of processes that ``torchrun`` started: ``WORLD_SIZE``, or 1 if it is not set or empty.

    Raises :class:`InputError` if the launcher's variables are incomplete or are no numbers.
    """
    size = _number("WORLD_SIZE", 1, default=1)
    if size == 1:
        return 1
    missing = [name for name in LAUNCHER_VARIABLES if not os.environ.get(name, "").strip()]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            "set; start the processes with torchrun, or unset WORLD_SIZE"
        )
    for name in ("RANK", "LOCAL_RANK"):
        if (rank := _number(name, 0)) >= size:
            raise InputError(
                f"{name}: expected a whole number below WORLD_SIZE = {size}, got {rank}; start the "
                "processes with torchrun, or unset WORLD_SIZE"
            )
    _number("MASTER_PORT", 0)
    return size


def _number(name: str, least: int, default: int | None = None) -> int:
    """Return the whole number in an environment variable of the launcher."""
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise InputError(
            f"{name}: expected a whole number from {least}, got {text!r}; start the processes with "
            "torchrun, or unset WORLD_SIZE"
        )
    return int(text)


def local_rank() -> int | None:
    """Return this process's number on its machine, which selects its GPU; None for a run on its own."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else None


@contextmanager
def join_processes(
    mode: str | None = None, otherwise: str | None = None, device: torch.device | None = None
) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started (it sets ``WORLD_SIZE``), for the time of the context.

    Args:
        mode: one of ``PARALLEL_MODES``; without ``torchrun`` it is an :class:`InputError`. Default: ``otherwise``.
        otherwise: the mode of several processes if no ``mode`` is given. Default "batch".
        device: where this process computes. Default: the CPU.

    Yields:
        :class:`Processes`.
    """
    size = world_size()
    if mode is not None and size == 1:
        raise InputError(f"share: {mode!r} is for several processes; start them with torchrun --nproc-per-node N")
    chosen = mode or otherwise or "batch"
    if chosen not in PARALLEL_MODES:
        raise InputError(f"share: expected one of {', '.join(PARALLEL_MODES)}, got {chosen!r}")
    if size == 1:
        yield ALONE
        return
    # gloo in main memory: a process that ends closes its connections, so the others notice.
    dist.init_process_group("gloo" if device is None or device.type == "cpu" else "cpu:gloo,cuda:nccl")
    # If one process ends, torchrun ends the others by SIGTERM, often before they have printed why they cannot go on.
    # So SIGTERM is ignored outside checkpoint.interruptible, and stays ignored while that message is on its way.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lost = False
    try:
        yield Processes(dist.get_rank(), size, "networks" if chosen == "networks" else "batch")
    except ProcessLost:
        lost = True
        raise
    finally:
        if not lost:
            signal.signal(signal.SIGTERM, before)
        with suppress(RuntimeError):
            dist.destroy_process_group()
