"""Functions of one number with an explicit derivative, as autograd of their formulas would give inf * 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor, int], Tensor]


def with_slope(value: Function, slope: Function) -> Function:
    """Return the function ``value(u, order)``, elementwise in u, with ``slope(u, order)`` as its derivative.

    It is differentiable as often as ``slope`` is, in reverse and forward mode.
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
            (u,) = ctx.saved_tensors
            return grad * slope(u, ctx.order), None

    class Both(Reverse):
        @staticmethod
        def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
            (u,) = ctx.saved_tensors
            return tangent * slope(u, ctx.order)

    def call(u: Tensor, order: int) -> Tensor:
        # The compiler cannot trace a Function that has a forward mode.
        result: Tensor = (Reverse if torch.compiler.is_compiling() else Both).apply(u, order)
        return result

    return call
