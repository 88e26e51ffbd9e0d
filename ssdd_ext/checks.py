"""Argument checks. Every error names the argument, what was expected, what came, and what to do.

Checks run once, here, before anything is computed. The native core repeats only those that memory safety needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from functools import cached_property
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

if find_spec(f"{__package__}._C") is None:
    raise ImportError(
        f"{__package__}: the native core is not built: there is no {__package__}._C beside {__file__}. In a checkout "
        f"build it in place with 'make dev', or install the package with 'pip install .'. If it is installed, this "
        f"folder hides it: run from another one, with 'pytest' and not 'python -m pytest'"
    )

Value = TypeVar("Value")
FEATURE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ON_FAILURE = ("raise", "jitter", "nan")
BACKENDS = ("auto", "native", "planned", "torch")
# Sizes are signed 64-bit in the core; larger products are refused long before they could overflow there.
MAX_ELEMENTS = 2**47


def describe(value: Any) -> str:
    """Describe a value in few words, for an error message."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def tensor(name: str, value: Any, *, min_dim: int = 2) -> Tensor:
    """Require a dense real floating-point tensor with at least ``min_dim`` dimensions."""
    if not isinstance(value, Tensor):
        hint = f"; convert it with torch.as_tensor({name})" if type(value).__module__ == "numpy" else ""
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(value)}{hint}")
    if value.is_nested:
        raise TypeError(
            f"{name}: expected a dense tensor, got a nested one, whose matrices differ in size; call its parts one "
            f"by one, or pad them with torch.nested.to_padded_tensor({name}, 0.0)"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}; call {name}.to_dense() first")
    if value.dtype not in FEATURE_DTYPES:
        raise TypeError(
            f"{name}: expected float32, float64, bfloat16 or float16, got {describe(value)}; "
            f"convert it, for example with {name}.float()"
        )
    if value.dim() < min_dim:
        row = "" if name.startswith("y") else f", {name}.unsqueeze(0) for one row"
        one = f"{name}.unsqueeze(-1) for one column{row}"
        raise ValueError(
            f"{name}: expected at least {min_dim} dimensions [..., rows, columns], got {describe(value)}; write {one}"
        )
    return value


def size(name: str, value: Tensor, axis: int, expected: int, other: str) -> None:
    """Require ``value.shape[axis] == expected``, the size that ``other`` has."""
    if value.shape[axis] != expected:
        raise ValueError(f"{name}: expected {expected} along dimension {axis} to match {other}, got {describe(value)}")


def square(name: str, value: Tensor) -> None:
    if value.shape[-1] != value.shape[-2]:
        raise ValueError(f"{name}: expected a square matrix [..., S, S], got {describe(value)}")


def not_empty(name: str, value: Tensor, axis: int, what: str) -> None:
    if value.shape[axis] == 0:
        raise ValueError(f"{name}: expected at least one {what}, got {describe(value)}")


def same_device(**named: Tensor | None) -> torch.device:
    first_name, first = next((n, t) for n, t in named.items() if t is not None)
    for name, value in named.items():
        if value is not None and value.device != first.device:
            raise ValueError(
                f"{name}: expected device {first.device}, where {first_name} is, got {value.device}; "
                f"move it with {name}.to({first_name}.device)"
            )
    return first.device


def work_dtype(solve_dtype: torch.dtype | None, **named: Tensor | None) -> tuple[torch.dtype, torch.dtype]:
    """Return (dtype to compute in, dtype to return) for these inputs.

    Half-precision inputs are computed and returned in float32, also together with float32. float64 is never mixed with
    narrower types silently. ``solve_dtype=torch.float64`` computes in float64 and returns the same dtype as without it.
    """
    wide = [(n, t) for n, t in named.items() if t is not None and t.dtype == torch.float64]
    narrow = [(n, t) for n, t in named.items() if t is not None and t.dtype != torch.float64]
    if wide and narrow:
        raise TypeError(
            f"{narrow[0][0]}: expected float64 like {wide[0][0]}, got {describe(narrow[0][1])}; "
            f"convert one of them (float64 is never mixed with narrower types silently)"
        )
    result = torch.float64 if wide else torch.float32
    if solve_dtype is None:
        return result, result
    if solve_dtype not in (torch.float32, torch.float64):
        raise ValueError(f"solve_dtype: expected None, torch.float32 or torch.float64, got {solve_dtype!r}")
    if solve_dtype == torch.float32 and result == torch.float64:
        raise ValueError("solve_dtype: float32 would lose digits of float64 inputs; convert the inputs instead")
    return solve_dtype, result


def labels(name: str, value: Tensor, classes: int) -> Tensor:
    """Return class numbers [..., rows] as int64. Their range is checked on the CPU only: a GPU would synchronise."""
    if value.dtype == torch.bool or value.dtype.is_floating_point or value.dtype.is_complex or value.dim() < 1:
        raise TypeError(f"{name}: expected class numbers [..., Q] of an integer dtype, got {describe(value)}")
    value = value.long()
    if _can_be_read(value):
        with contextlib.suppress(RuntimeError):  # not under a transform
            if not bool(((value >= 0) & (value < classes)).all()):
                worst = int(value.min()) if int(value.min()) < 0 else int(value.max())
                raise ValueError(
                    f"{name}: expected class numbers from 0 to {classes - 1}, the columns of y_s, got {worst}"
                )
    return value


def sample_weight(value: Tensor, rows: int, other: str) -> Tensor:
    """Check weights [..., rows] of points and return them as a column [..., rows, 1].

    Their sign is checked on the CPU only: a GPU would synchronise.
    """
    tensor("sample_weight", value, min_dim=1)
    size("sample_weight", value, -1, rows, other)
    if _can_be_read(value):
        with contextlib.suppress(RuntimeError):  # not under a transform
            least = value.detach().min().item()
            if least < 0:
                raise ValueError(f"sample_weight: expected numbers >= 0, got {least:g}")
    return value.unsqueeze(-1)


def _can_be_read(value: Tensor) -> bool:
    """Return True if ``value`` has numbers that Python may read: on the CPU, and not in a call that is compiled."""
    plain = value.is_cpu and type(value) in (Tensor, torch.nn.Parameter)
    return plain and value.numel() > 0 and not torch.compiler.is_compiling()


def full_precision(like: Tensor) -> Any:
    """Switch autocast off for torch's products. Autocast would round them to 16 bits, and a solve with them would
    lose its digits or fail."""
    kind = like.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


class CachedProperty(cached_property[Value]):
    """A ``cached_property`` that torch.compile can trace: it computes the value at each use there.

    The lock of Python 3.11's ``cached_property`` cannot be traced.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None and torch.compiler.is_compiling():
            return self.func(instance)
        return super().__get__(instance, owner)


def is_transformed() -> bool:
    """Return True under a torch.func transform or forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def in_nested_forward_mode() -> bool:
    """Return True under jvp inside jvp. PyTorch takes the jvp of a custom Function there for a constant."""
    stack = torch._C._functorch.get_interpreter_stack() if is_transformed() else None
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack or ()) > 1


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """Return ``ctx.saved_tensors`` without wrappers of a transform that has ended.

    The function that torch.func.vjp returns runs the backward after its transform has ended. PyTorch's own operations
    then unwrap what was saved; custom Functions and the core do not.
    """
    saved = ctx.saved_tensors
    return saved if torch.compiler.is_compiling() else tuple(map(_without_ended_transforms, saved))


def _without_ended_transforms(value: Any) -> Any:
    while isinstance(value, Tensor) and torch._C._functorch.is_gradtrackingtensor(value):
        inside = torch._C._functorch.unwrap_if_dead(value)
        if inside is value:
            break
        value = inside
    return value


def batch_shape(**named: torch.Size) -> torch.Size:
    """Return the common batch shape. Raises an error that names the shapes if they do not broadcast."""
    shapes = list(named.values())
    if all(s == shapes[0] for s in shapes[1:]):
        return shapes[0]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        listed = ", ".join(f"{n} {tuple(s)}" for n, s in named.items())
        raise ValueError(
            f"batch dimensions (all but the last two) must broadcast against each other, got {listed}"
        ) from None


def finite(**named: Tensor | None) -> None:
    """Require finite values in all tensors (one synchronisation per tensor on CUDA)."""
    for name, value in named.items():
        if value is not None and not value.is_meta and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise ValueError(f"{name}: expected finite numbers, got {bad} NaN or Inf among {value.numel()}")


def number(name: str, value: float, *, positive: bool = False) -> float:
    """Require a finite Python number, >= 0 or > 0."""
    value = float(value)
    if not 0 <= value < math.inf or (positive and value == 0):
        raise ValueError(f"{name}: expected a finite number {'>' if positive else '>='} 0, got {value}")
    return value


def parameter(name: str, value: Any, *, positive: bool = False) -> float | Tensor:
    """Require a hyper-parameter: a number, checked by value, or a float tensor, checked by type only (no
    synchronisation)."""
    if isinstance(value, Tensor):
        if value.dtype not in FEATURE_DTYPES:
            raise TypeError(f"{name}: expected a floating-point tensor or a number, got {describe(value)}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        try:
            value = value.__float__()
        except AttributeError:
            raise TypeError(f"{name}: expected a number or a tensor, got {describe(value)}") from None
    return number(name, value, positive=positive)


def _fields(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, field.name) for field in dataclasses.fields(value))


def same_fields(one: Any, other: object) -> bool:
    """Return True for equal dataclasses that may hold tensors. A tensor equals only itself, so no values are read."""
    if type(one) is not type(other):
        return False
    return all(
        a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
        for a, b in zip(_fields(one), _fields(other), strict=True)
    )


def hash_of_fields(value: Any) -> int:
    """Return the hash that matches :func:`same_fields`."""
    return hash((type(value), *(id(v) if isinstance(v, Tensor) else v for v in _fields(value))))


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        listed = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}")
    return value


def product_fits(**sizes: int) -> None:
    """Refuse sizes whose product no machine can hold, before anything is allocated."""
    total = 1
    for one in sizes.values():  # torch.compile does not trace math.prod over symbolic sizes
        total = total * one
    if total > MAX_ELEMENTS:
        listed = " x ".join(f"{n}={v}" for n, v in sizes.items())
        raise ValueError(f"{listed}: {total} elements are more than the {MAX_ELEMENTS} this backend addresses")


class FactorizationError(torch.linalg.LinAlgError):
    """A matrix is not positive definite, or a hyper-parameter tensor has a value out of range."""


def why_not_finite(tensors: dict[str, Tensor], dtype: torch.dtype) -> str:
    """Say which input holds NaN or Inf, or is so large that its products overflow ``dtype``; "" if none is.

    Reads the values: it is called only for the message of an error.
    """
    largest = torch.finfo(dtype).max
    for name, t in tensors.items():
        if t.is_meta or not t.numel():
            continue
        if not bool(torch.isfinite(t).all()):
            return f"{name} holds NaN or Inf; remove them, or find where they arise with check_finite=True"
        top = float(t.detach().abs().max().double())
        terms, power = (t.shape[-1], 2) if name.startswith("x") else (1, 1)
        if name in ("x", "x_s", "a", "k_ss") and top > (largest / (terms * t.shape[-2])) ** (1 / power):
            sums = "the sums of its squares" if power == 2 else "its trace"
            wider = "" if dtype == torch.float64 else ", or solve_dtype=torch.float64"
            kind = str(dtype).removeprefix("torch.")
            return (
                f"{name} is too large for {kind}: its largest entry is {top:.1e}, and {sums} can pass {largest:.1e}; "
                f"scale it{wider}"
            )
    return ""


MAY_VANISH = ("bias", "b_std", *(f"Ridge.{kind}" for kind in ("absolute", "trace", "mean_trace")))


def numbers_beyond(named: dict[str, Any], dtype: torch.dtype) -> str:
    """Name the hyper-parameters that are numbers and too large for ``dtype``, or so small that it takes them for 0
    where 0 is out of range; "" if there are none."""
    ends = torch.finfo(dtype)
    numbers = {name: value for name, value in named.items() if not isinstance(value, Tensor)}
    beyond = [
        f"{name} = {value:g}"
        for name, value in numbers.items()
        if value > ends.max or (value < ends.tiny and not name.endswith(MAY_VANISH))
    ]
    if not beyond:
        return ""
    kind, wider = str(dtype).removeprefix("torch."), "" if dtype == torch.float64 else ", or solve_dtype=torch.float64"
    span = f"{ends.tiny:.1e} to {ends.max:.1e}"
    return f"{', '.join(beyond)}: expected {span}, the range of {kind}; scale the inputs{wider}"


def raise_on_failure(op: str, status: Tensor, order: int, ridge: Any) -> None:
    """Read ``status`` [...] (one synchronisation on CUDA) and raise for the first problem that failed."""
    if status.is_meta:
        return  # shapes alone cannot fail
    if status.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{op}: on_failure='raise' reads the status on the host, which a CUDA graph capture forbids; "
            f"pass on_failure='nan' or 'jitter' and look at Info.status after the replay"
        )
    try:
        failed = bool((status != 0).any())
    except RuntimeError as error:
        raise RuntimeError(
            f"{op}: on_failure='raise' reads the status on the host, which the PyTorch backends cannot do "
            f"under torch.func transforms or torch.compile; pass on_failure='nan' or 'jitter', or backend='native'"
        ) from error
    if not failed:
        return
    flat = status.reshape(-1)
    first = int((flat != 0).nonzero()[0])
    code, count = int(flat[first]), int((flat != 0).sum())
    where = f"problem {first} of {flat.numel()}" if flat.numel() > 1 else "the problem"
    more = f" ({count} problems failed)" if count > 1 else ""
    if code < 0:
        raise FactorizationError(
            f"{op}: {where} has a hyper-parameter out of range{more}: a ridge must be finite and >= 0, a scale or "
            f"lengthscale > 0, a bias >= 0, and the square of a lengthscale in the range of the dtype; clamp or "
            f"re-parametrise the tensor (for example value.exp())"
        )
    without = ridge in (None, "none")
    larger = (
        "add a multiple of the identity" if op == "cholesky" else "pass a ridge" if without else "use a larger ridge"
    )
    raise FactorizationError(
        f"{op}: the matrix of {where} is not positive definite: pivot {code} of {order} is not a positive finite "
        f"number, {'without a ridge' if without else f'with ridge {ridge}'}{more}; {larger}, "
        f"on_failure='jitter', or solve_dtype=torch.float64, "
        f"and check_finite=True if the inputs may hold NaN; a matrix that is meant to be singular is solved by "
        f"torch.linalg.lstsq or pinv(hermitian=True), an indefinite one by torch.linalg.solve"
    )
