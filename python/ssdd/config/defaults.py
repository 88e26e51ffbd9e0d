"""PyTorch's defaults that a user may have changed: networks and images here are float32, and are made on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_float32(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``function`` with float32 as PyTorch's default dtype and the CPU as its default device.

    Other devices are named where tensors go there. The user's defaults are back afterwards. A default device is a mode
    of PyTorch that every call goes through, so it is only entered if there is another one.
    """

    @wraps(function)
    def run(*arguments: _P.args, **keywords: _P.kwargs) -> _R:
        import torch  # not when settings are read

        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        if dtype is torch.float32 and device.type == "cpu":
            return function(*arguments, **keywords)
        torch.set_default_dtype(torch.float32)
        try:
            if device.type == "cpu":
                return function(*arguments, **keywords)
            with torch.device("cpu"):
                return function(*arguments, **keywords)
        finally:
            torch.set_default_dtype(dtype)

    return run
