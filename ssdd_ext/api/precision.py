"""How many digits a solve has: an estimate of the condition number, and one warning per process."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from ..ops.register import is_transformed
from ..ridge import Ridge

ROUNDS = 4
"""Rounds of power iteration at either end of the spectrum."""
WORTHLESS = 2e6
"""From this condition number on, the last two digits of a float32 result can be wrong. Measured on Gram matrices of
RBF and linear kernels with noisy targets: the relative error of predictions is about 0.3 * 2^-24 times the condition
number."""
MOST_SITES = 64
"""Different calls that are looked at per process."""

_seen: set[Any] = set()
_finished = False
_warned = False


def condition(factor: Tensor) -> Tensor:
    """Estimate the condition number of A = L L^T from its factor L [..., n, n]; [...], without gradient.

    The largest eigenvalue is estimated by power iteration, the smallest by inverse iteration, with a fixed start. Both
    bounds are reached from inside, so the estimate is never above the condition number of the factor's product; it is
    rarely below half of it. It costs 8 n^2 multiply-adds per round. A failed problem gives NaN.
    """
    n = factor.shape[-1]
    if factor.dim() < 2:
        return factor.new_full((), math.nan)
    if n == 0:
        return factor.new_ones(factor.shape[:-2])
    with torch.no_grad():
        factor = factor.detach().tril()  # above the diagonal the core keeps K_ss
        start = torch.cos(torch.arange(n, dtype=factor.dtype, device=factor.device) + 0.5)
        largest = smallest = start[:, None].expand(*factor.shape[:-1], 1)
        for _ in range(ROUNDS):
            largest = factor @ (factor.mT @ _unit(largest))
            smallest = torch.cholesky_solve(_unit(smallest), factor)
        by_power = torch.linalg.vector_norm(largest, dim=(-2, -1)) * torch.linalg.vector_norm(smallest, dim=(-2, -1))
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        return torch.maximum(by_power, (pivots.amax(-1) / pivots.amin(-1)).square())


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)


def is_new(dtype: torch.dtype, site: Any) -> bool:
    """Return True for the first float32 call of this site in the process, until the warning was given.

    Args:
        dtype: dtype of the solve.
        site: what tells calls apart, such as shapes and the ridge; hashable, without tensors.
    """
    global _finished
    if _finished or dtype is not torch.float32 or site in _seen:
        return False
    _seen.add(site)
    _finished = len(_seen) >= MOST_SITES
    return True


def is_watched(factor: Tensor) -> bool:
    """Return True if a value may be read here without cost: on the CPU, in eager mode, outside of transforms."""
    if torch.compiler.is_compiling() or not factor.is_cpu or type(factor) is not Tensor or torch.jit.is_tracing():
        return False
    return not is_transformed() and not torch._C._len_torch_dispatch_stack()


def warn_if_worthless(op: str, estimate: Tensor, ridge: Ridge | None) -> None:
    """Warn, once per process, if the worst of the condition numbers leaves fewer than two digits in float32."""
    global _finished, _warned
    if _warned:
        return
    finite = estimate[estimate.isfinite()]
    worst = float(finite.max()) if finite.numel() else 0.0
    if worst < WORTHLESS:
        return
    _finished = _warned = True
    given = (
        "" if ridge is None or not isinstance(ridge.value, float) else f" (here Ridge.{ridge.kind}({ridge.value:g}))"
    )
    warnings.warn(
        f"ssdd_ext.{op}: the condition number of the matrix is about {worst:.0e}, so that fewer than two digits of a "
        f"float32 result may be right; pass solve_dtype=torch.float64, or a larger ridge{given}. This is said once per "
        f"process; return_info=True returns the condition number of every call.",
        RuntimeWarning,
        stacklevel=_outside(),
    )


def _outside() -> int:
    """Return the stack level of the caller's caller, at the first frame outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ssdd_ext":
        frame, level = frame.f_back, level + 1
    return level


def reset() -> None:
    """Forget which calls were looked at, and whether the warning was given."""
    global _finished, _warned
    _seen.clear()
    _finished = _warned = False
