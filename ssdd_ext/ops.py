"""Native ops (to come): until the core is built every call says so and the reference computes."""

from __future__ import annotations

from typing import Any

import torch

from .kernels import Kernel


def unavailable(device: torch.device, kernel: Kernel) -> str | None:
    return "this version has no native core"


def __getattr__(name: str) -> Any:
    raise AttributeError(f"ssdd_ext.ops.{name}: this version has no native core")
