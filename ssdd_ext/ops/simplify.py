"""Kernels that are another kernel of other features, or of another ridge: those run as the other one.

- ``ARD(kernel, v)`` is ``kernel`` of the features divided by v.
- ``Cosine()`` is ``Linear()`` of features of length 1, so that it has the low-rank and the primal order.
- ``Polynomial(1, scale, bias)`` is ``Linear(scale, bias)``.
- ``factor * kernel`` with lambda predicts what ``kernel`` with lambda / factor does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..kernels import ARD, Combination, Cosine, Kernel, Linear, Polynomial, Scaled
from ..kernels.products import unit_rows
from ..ridge import Ridge

Number = float | Tensor
Features = Callable[[Tensor], Tensor]


def core_kernel(kernel: Kernel) -> Kernel:
    """Return the kernel that is evaluated in the end; a sum or product stays."""
    while isinstance(kernel, (ARD, Scaled)):
        kernel = kernel.kernel
    if isinstance(kernel, Polynomial) and kernel.degree == 1:
        return Linear(kernel.scale, kernel.bias)
    return Linear() if isinstance(kernel, Cosine) else kernel


def simplify(kernel: Kernel, ridge: Ridge) -> tuple[Features | None, Kernel, Ridge]:
    """Return (a function of the features or None, the kernel of the new features, its ridge), which predict the same.

    A hyper-parameter that disappears and is out of range makes the ridge NaN.
    """
    steps: list[Features] = []
    flags: list[Tensor] = []
    while isinstance(kernel, (ARD, Scaled)):
        inner = kernel.kernel
        if isinstance(kernel, ARD):
            steps.append(kernel.features)
            flags.append(((kernel.lengthscale > 0) & (kernel.lengthscale < math.inf)).all(-1))
        else:
            ridge = _without_factor(ridge, kernel.factor)
            if isinstance(kernel.factor, Tensor):
                flags.append((kernel.factor > 0) & (kernel.factor < math.inf))
        kernel = inner
    if isinstance(kernel, Cosine):
        steps.append(unit_rows)
    kernel = core_kernel(kernel)
    features = (lambda x: functools.reduce(lambda value, step: step(value), steps, x)) if steps else None
    return features, kernel, guarded(ridge, flags)


def _without_factor(ridge: Ridge, factor: Number) -> Ridge:
    if ridge.kind == "absolute":
        return replace(ridge, value=ridge.value / factor)
    if not isinstance(factor, Tensor):
        return ridge
    # lambda grows with the factor, so the predictions do not depend on it: its gradient is 0. A detached trace, which
    # contains the factor, is a constant for the gradient.
    one = factor.detach() / factor if ridge.detach else 1 + 0 * factor
    return replace(ridge, value=ridge.value * one)


def guarded(ridge: Ridge, flags: list[Tensor]) -> Ridge:
    """Return the ridge, NaN where a flag is false. The native ops mark such a problem as one of a bad parameter."""
    if not flags:
        return ridge
    every = functools.reduce(torch.logical_and, flags)
    value = (
        ridge.value
        if isinstance(ridge.value, Tensor)
        else torch.full((), ridge.value, dtype=torch.float64, device=every.device)
    )
    return replace(ridge, value=torch.where(every, value.to(every.device), math.nan))


def is_composed(kernel: Kernel) -> bool:
    """Return True for sums and products, whose Gram matrices are formed from those of their parts."""
    return isinstance(kernel, Combination)


def parts(kernel: Kernel) -> list[Kernel]:
    """Return the kernels that are evaluated, of a combination of any depth."""
    kernel = core_kernel(kernel)
    if not isinstance(kernel, Combination):
        return [kernel]
    return [leaf for child in kernel.children().values() for leaf in parts(child)]
