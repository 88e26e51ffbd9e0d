"""How every op is registered: schema, fake, autograd, vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("ssdd_ext", "DEF")


def refuse_double(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"ssdd_ext: double backward through the native {name} is not implemented; pass backend='torch', whose "
            f"gradients are differentiable any number of times"
        )

    return refuse


def vmap_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    """Every op takes leading batch dimensions: move the mapped one to the front, expand what is not mapped."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        moved = [
            arg
            if not isinstance(arg, Tensor)
            else arg.movedim(dim, 0)
            if dim is not None
            else arg.expand(info.batch_size, *arg.shape)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        result = op(*moved)
        return result, (0,) * len(result) if isinstance(result, tuple) else 0

    return rule


def register(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., Any] | None = None,
) -> None:
    qualified = f"ssdd_ext::{name}"
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(qualified, fake, lib=library)
    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=library)
    torch.library.register_vmap(qualified, vmap_rule(getattr(torch.ops.ssdd_ext, name)), lib=library)
