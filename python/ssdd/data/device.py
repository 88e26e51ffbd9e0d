"""Where tensors are computed on, and how they get there without the host waiting for the device.

Random draws always come from a generator in main memory: they are the same on every device, and a checkpoint holds
them. What is drawn there (rows, shifts, angles) is small, and sent through pinned memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import InputError
from .stream import MEMORY

CPU = torch.device("cpu")
DEVICES = ("cpu", "cuda")


def choose_device(name: str | None = None, index: int | None = None) -> torch.device:
    """The device of that name; None: CUDA where there is any, else the CPU. ``index``: which of several GPUs."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise InputError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for, but torch sees no CUDA device here; use --device cpu")
    at = torch.cuda.current_device() if index is None else index
    if at >= torch.cuda.device_count():
        raise InputError(f"device: expected a GPU for each process, got {torch.cuda.device_count()} for process {at}")
    return torch.device("cuda", at)


@contextmanager
def repeatable() -> Iterator[None]:
    """While it lasts cuDNN takes only algorithms that give the same bits again, and chooses without timing any."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return ``x`` on ``device``. The host goes on at once if it sends to a device, and waits if it reads from one."""
    if x.device == device or device.type == "cpu":
        return x.to(device)
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def gather(stored: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Return ``stored[rows]`` on ``device``; ``rows`` int64, in main memory. Gathered where it is stored."""
    return stored[to_device(rows, device)] if stored.device == device else to_device(stored[rows], device)


def keep_on_device(stored: Tensor, device: torch.device, memory: int = MEMORY) -> Tensor:
    """Return ``stored`` on ``device``, or where it is if it takes more than ``memory`` bytes (batches are sent)."""
    return stored.to(device) if stored.nbytes <= memory else stored


def module_to_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Return ``module`` with its weights and statistics on ``device``, as :func:`to_device` does it."""
    if device.type == "cuda":
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = tensor.data.pin_memory() if tensor.device.type == "cpu" else tensor.data
    return module.to(device, non_blocking=device.type != "cpu")
