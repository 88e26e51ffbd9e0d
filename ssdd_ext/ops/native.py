"""The only module that imports the native core, and the conversions of tensors for it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import _C as core
from .. import checks, plan
from ..kernels import Kernel
from .register import in_forward_mode
from .simplify import parts

# By Kernel.spec without a number of layers or a degree: the codes of csrc/tensor.h.
KERNEL_CODES = {
    "linear": 0,
    "rbf": 1,
    "laplace:2": 2,
    "matern:0.5": 2,
    "matern:1.5": 3,
    "matern:2.5": 4,
    "rational_quadratic": 5,
    "polynomial": 6,
    "arc_cosine:0": 7,
    "arc_cosine:1": 8,
    "nngp": 9,
    "ntk": 10,
    "laplace:1": 11,
}
# Functions of an angle, which has half the digits of its cosine near 0: the core computes them in float64 only.
ANGLES = ("arc_cosine", "nngp", "ntk")
# Of a network; more run in planned PyTorch.
MOST_LAYERS = 16
to_capsule = torch.utils.dlpack.to_dlpack


@lru_cache(maxsize=1024)
def kernel_code(spec: str) -> tuple[int, int] | None:
    """Return (code, order) of a Kernel.spec in the core, or None; the order is a degree or a number of layers."""
    if spec in KERNEL_CODES:
        return KERNEL_CODES[spec], 0
    name, _, number = spec.partition(":")
    if name not in KERNEL_CODES or not number.isdigit() or (name != "polynomial" and int(number) > MOST_LAYERS):
        return None
    return KERNEL_CODES[name], int(number)


def native_code(spec: str) -> tuple[int, int]:
    """Return the same for a kernel that the core has."""
    code = kernel_code(spec)
    assert code is not None, spec
    return code


def keeps_arguments(spec: str) -> bool:
    """Return True if the backward needs the arguments of the kernel function beside its values."""
    return spec not in ("linear", "rbf")


def is_of_angles(spec: str) -> bool:
    """Return True if the core computes the kernel in float64 only."""
    return spec.partition(":")[0] in ANGLES


def angle_layers(kernel: Kernel) -> int:
    """Return how many angles the core computes in float64 per element of K: the most hidden layers of a network, 1 for
    an arc-cosine kernel, 0 without an angle."""
    if kernel.name in ("linear", "rbf"):
        return 0
    codes = [(part, kernel_code(part.spec)) for part in parts(kernel)]
    return max((max(1, code[1]) if code and is_of_angles(part.spec) else 0 for part, code in codes), default=0)


def has_code(kernel: Kernel, spec: str, dtype: torch.dtype) -> bool:
    """Return True if the core has the kernel as it is, in this dtype; ``spec`` is that of the kernel."""
    known = kernel_code(spec) is not None and (dtype is torch.float64 or not is_of_angles(spec))
    return known and not kernel.extreme


def is_bordered(spec: str, hyper: Any, values: list[Any]) -> bool:
    """Return True if a primal has a row for the bias. A bias that is a tensor can have any value, so it gets one; a
    number may be 0 and then needs none."""
    return spec == "linear" and (hyper is not None or values[1] != 0)


def unavailable(device: torch.device, kernel: Kernel) -> str | None:
    """Say why the native core cannot run here; None if it can."""
    for part in (kernel,) if kernel.name in ("linear", "rbf") else parts(kernel):
        if kernel_code(part.spec) is None:
            return f"it has no native epilogue for {type(part).__name__}"
    if kernel.name not in ("linear", "rbf") and in_forward_mode():
        return "it has no forward mode"
    if torch.jit.is_tracing():
        return "torch.jit.trace cannot record its ops"
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        return _problem_on(device.index if device.index is not None else torch.cuda.current_device()) or None
    return f"it runs on cpu and cuda tensors, not on {device.type}"


def _problem_on(index: int) -> str:
    # torch.compile cannot trace the core, and traces through the cache. It treats this result as a constant.
    return _cuda_problem(index)


# What torch.compiler.assume_constant_result sets. That imports the compiler, which takes as long as importing torch.
vars(_problem_on)["_dynamo_marked_constant"] = True


@lru_cache(maxsize=64)
def _cuda_problem(index: int) -> str:
    if index < torch.cuda.device_count():
        with torch.cuda.device(index):  # see register.on_its_device
            return core.cuda_problem(index)
    return core.cuda_problem(index)


def gpu(value: Tensor) -> plan.Gpu | None:
    """Return the planning constants of the tensor's GPU; None on the CPU."""
    return _gpu(value.device.index) if value.is_cuda else None


@lru_cache(maxsize=64)
def _gpu(index: int) -> plan.Gpu:
    return plan.Gpu.of(torch.cuda.get_device_properties(index))


def capsule(value: Tensor | None) -> Any:
    return None if value is None else to_capsule(value)


def matrices(value: Tensor | None) -> Any:
    """Return [..., r, c] as a capsule of 2 or 3 dimensions; more batch dimensions are flattened (a copy if
    necessary)."""
    if value is None:
        return None
    if value.dim() > 3:
        value = value.flatten(0, -3)
    return to_capsule(value)


def hyper_rows(value: Tensor | None) -> Any:
    return None if value is None else to_capsule(value.contiguous().view(-1, 1, value.shape[-1]))


def stream(value: Tensor) -> tuple[int, bool]:
    """Return the current stream of the tensor's GPU as a number, and if launches on it are dependent ones."""
    if not value.is_cuda:
        return 0, False
    return torch.cuda.current_stream(value.device).cuda_stream, plan.gpu.DEPENDENT_LAUNCH


# Workspaces at hand, at most a few and none large: an allocation costs microseconds, and its pages are new each time.
# Taking one out of a list is atomic, so two threads never share one.
_spare: list[Tensor] = []
_MOST_SPARE, _LARGEST_SPARE = 4, 1 << 21


def take_workspace(elements: int, like: Tensor) -> Tensor:
    """Uninitialised memory for one call of the core; :func:`return_workspace` afterwards."""
    if like.is_cuda or elements > _LARGEST_SPARE:
        return like.new_empty(elements)
    try:
        work = _spare.pop()
    except IndexError:
        return like.new_empty(elements)
    return work if work.dtype is like.dtype and work.numel() >= elements else like.new_empty(elements)


def return_workspace(work: Tensor) -> None:
    """Keep it for the next call."""
    if not work.is_cuda and type(work) is Tensor and len(_spare) < _MOST_SPARE and work.numel() <= _LARGEST_SPARE:
        _spare.append(work)


def raise_if_asked(op: str, status: Tensor, on_failure: str, size: int, ridge: Any) -> None:
    if on_failure == "raise":
        checks.raise_on_failure(op, status, size, ridge)


def failure_code(on_failure: str) -> int:
    return 1 if on_failure == "jitter" else 0


def ridge_text(ridge: str, hyper: Tensor | None, values: list[float]) -> str:
    value = "a tensor" if hyper is not None else f"{values[-1]:g}" if values else "0"
    return f"Ridge.{ridge}({value})" if ridge else "none"


def build_info() -> dict[str, Any]:
    return dict(core.build_info())
