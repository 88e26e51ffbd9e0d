"""Devices, and copies to them that do not block the host.

Random draws always come from a generator in main memory. They are the same on every device, and a checkpoint stores
them. The drawn numbers (rows, shifts, angles) are small and are copied through pinned memory.
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
    """Return a device by name.

    Args:
        name: "cpu" or "cuda". Default: "cuda" if there is a GPU, else "cpu".
        index: the number of the GPU, if there are several. Default: torch's current one.

    Raises:
        InputError: for another name, or if there is no such GPU.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise InputError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise InputError("device: got 'cuda', but torch sees no CUDA device here; use --device cpu")
    at = torch.cuda.current_device() if index is None else index
    if at >= torch.cuda.device_count():
        raise InputError(f"device: expected one GPU per process, got {torch.cuda.device_count()} for process {at}")
    return torch.device("cuda", at)


@contextmanager
def repeatable() -> Iterator[None]:
    """Restrict cuDNN to deterministic algorithms, chosen without timing them, for the time of the context."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return ``x`` on ``device``. A copy to a GPU does not block the host; a copy from a GPU does."""
    if x.device == device or device.type == "cpu":
        return x.to(device)
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def gather(stored: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Return ``stored[rows]`` on ``device``; ``rows`` is int64 in main memory. The rows are gathered on the device
    of ``stored``."""
    return stored[to_device(rows, device)] if stored.device == device else to_device(stored[rows], device)


def keep_on_device(stored: Tensor, device: torch.device, memory: int = MEMORY) -> Tensor:
    """Return ``stored`` on ``device`` if it takes at most ``memory`` bytes, else where it is; its batches are then
    copied."""
    return stored.to(device) if stored.nbytes <= memory else stored


def module_to_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Return ``module`` with its weights and statistics on ``device``, copied as by :func:`to_device`."""
    if device.type == "cuda":
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = tensor.data.pin_memory() if tensor.device.type == "cpu" else tensor.data
    return module.to(device, non_blocking=device.type != "cpu")
