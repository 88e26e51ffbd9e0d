"""Functions of one number with an explicit derivative, as autograd of their formulas would give inf * 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import in_nested_forward_mode, saved_tensors

Function = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Ends:
    """The points at which autograd of a formula fails.

    Args:
        contain: ``contain(u)`` is True at these points.
        value: ``value(u, order)`` has the function's value and all its derivatives at these points.
        between: a point at which the formula is smooth.
    """

    contain: Callable[[Tensor], Tensor]
    value: Function
    between: float


def with_slope(value: Function, slope: Function, ends: Ends) -> Function:
    """Return the function ``value(u, order)``, elementwise in u, with ``slope(u, order)`` as its derivative.

    It is differentiable as often as ``slope`` is, in reverse and forward mode. ``ends`` are what jvp inside jvp needs,
    which differentiates the formula itself.
    """

    class Reverse(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(u: Tensor, order: int) -> Tensor:
            return value(u, order)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            u, ctx.order = inputs
            ctx.save_for_backward(u)
            ctx.save_for_forward(u)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            (u,) = saved_tensors(ctx)
            return grad * slope(u, ctx.order), None

    class Both(Reverse):
        @staticmethod
        def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
            (u,) = saved_tensors(ctx)
            return tangent * slope(u, ctx.order)

    def call(u: Tensor, order: int) -> Tensor:
        if in_nested_forward_mode():
            end = ends.contain(u)
            return torch.where(end, ends.value(u, order), value(torch.where(end, ends.between, u), order))
        # The compiler cannot trace a Function that has a forward mode.
        result: Tensor = (Reverse if torch.compiler.is_compiling() else Both).apply(u, order)
        return result

    return call
