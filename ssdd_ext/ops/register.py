"""Registration of the ops: schema, fake, autograd, vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from ..checks import is_transformed as is_transformed

library = torch.library.Library("ssdd_ext", "DEF")


def vmap_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return the vmap rule of ``op``: move the mapped dimension to the front, and expand tensors that are not
    mapped."""

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
        if not isinstance(result, tuple):
            return result, 0
        # The stand-in of an output that is not computed has the shape (0,) for every batch.
        return result, tuple(0 if t.dim() and t.shape[0] == info.batch_size else None for t in result)

    return rule


def in_forward_mode() -> bool:
    """Return True under forward-mode differentiation (dual numbers, torch.func.jvp)."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_differentiated() -> bool:
    """Return True in a backward that is itself differentiated (create_graph=True, torch.func transforms)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def no_forward_mode(name: str) -> str:
    """Return the message of an op without forward mode."""
    return (
        f"ssdd_ext: forward-mode differentiation through {name} is not implemented; pass backend='torch', whose "
        "reference has it"
    )


def apply(function: Any, name: str, *args: Any) -> Any:
    """Return ``function.apply(*args)``, for a Function that the compiler must trace and that therefore has no jvp.

    Raises NotImplementedError under forward mode, naming the function, where PyTorch's message does not.
    """
    if not in_forward_mode():
        return function.apply(*args)
    try:
        return function.apply(*args)
    except NotImplementedError:
        raise NotImplementedError(no_forward_mode(name)) from None


_PLAIN = (Tensor, torch.nn.Parameter)


def is_batched(value: Tensor) -> bool:
    """Return True for one of the tensors that torch.autograd.grad(is_grads_batched=True) passes to a backward."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(value))


def is_plain_call(args: tuple[Any, ...]) -> bool:
    """Return True if only autograd observes the call: its tensors are dense, of PyTorch's own types and on the CPU, and
    there are no modes, transforms or tracers."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    for t in args:
        if not isinstance(t, Tensor):
            continue
        if type(t) not in _PLAIN or not t.is_cpu or t.layout is not torch.strided or t.is_neg() or is_batched(t):
            return False
    return not (is_transformed() or torch._C._len_torch_dispatch_stack() or has_torch_function(args))


def needs_gradient(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args)


def on_its_device(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``implementation``, run with the device of its first tensor as the current one.

    The core would select the device itself, but it returns by selecting the former device. CUDA then creates a context
    there, which takes hundreds of megabytes, even if the process had none. With eight processes, one per device, each
    would have a context on the first device. torch checks this before it returns.
    """

    def there(first: Tensor, *rest: Any) -> Any:
        if first.device.index == torch.cuda.current_device():
            return implementation(first, *rest)
        with torch.cuda.device(first.device):
            return implementation(first, *rest)

    return there


def register(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register the op and return a function that calls it.

    If only autograd observes the call, it skips the dispatcher, which costs tens of microseconds in each pass.

    The autograd formula that torch.library makes of ``backward`` serves eager mode and torch.compile. It supports
    neither torch.func transforms nor forward mode. Under those, the op is called through a Function with the same setup
    and backward, which supports transforms and refuses forward mode with a clear error.
    """
    qualified = f"ssdd_ext::{name}"
    library.impl(name, implementation, "CPU")
    library.impl(name, on_its_device(implementation), "CUDA")
    op = getattr(torch.ops.ssdd_ext, name).default
    torch.library.register_fake(qualified, fake, lib=library)
    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=library)
    torch.library.register_vmap(qualified, vmap_rule(op), lib=library)

    def forward(*args: Any) -> Any:
        return op(*args)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if setup is not None:
            setup(ctx, inputs, output)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(no_forward_mode(f"the native {name}"))

    members = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    function = type(f"Transformed_{name}", (torch.autograd.Function,), {k: staticmethod(v) for k, v in members.items()})
    function.vmap = staticmethod(vmap_rule(function.apply))  # type: ignore[attr-defined]

    def run(ctx: Any, *args: Any) -> Any:
        output = implementation(*args)
        if setup is not None:
            setup(ctx, args, output)
        return output

    # Without setup_context, which costs as much as the rest of a Function.
    members = {"forward": run, "backward": backward}
    direct = type(f"Direct_{name}", (torch.autograd.Function,), {k: staticmethod(v) for k, v in members.items()})

    def call(*args: Any) -> Any:
        if is_plain_call(args):
            try:
                return direct.apply(*args) if needs_gradient(args) else implementation(*args)  # type: ignore[attr-defined]
            except (ValueError, BufferError):
                pass  # the core refuses a tensor without memory, such as a lazy zero, which the dispatcher makes first
        return function.apply(*args) if is_transformed() else op(*args)  # type: ignore[attr-defined]

    return call
