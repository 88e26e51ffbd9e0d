"""Options that could make an outer step faster: each lever's seconds, and the error of the outer gradient that it
causes.

Seconds of the processor change little on a shared machine. The reference is the current step (channels last if the
preset says so, BatchNorm folded, 32-bit); the error is against the gradient in float64.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ssdd_ext
from ssdd.config import DistillConfig
from ssdd.distillation import Job
from ssdd.distillation.batches import Batches
from ssdd.distillation.state import State
from ssdd.models import Network, frozen
from ssdd.models.features import CHUNK
from ssdd_ext.bench import machine, seconds_text, summary

Features = Callable[[Tensor], Tensor]
BF16 = ("bf16", "bf16, compiled")


def plain(network: Network) -> Features:
    """Return the backbone in eval mode with a separate BatchNorm; its weights are constants."""
    backbone = copy.deepcopy(network.backbone).eval().requires_grad_(False)
    return backbone


def half(features: Features) -> Features:
    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return features(x).float()

    return call


def chunked(features: Features) -> Features:
    return lambda x: torch.cat([features(part) for part in x.split(CHUNK)])


def roads(network: Network, compiled: bool) -> dict[str, Features]:
    """Return ways to compute the same features, by name."""
    found = {"as it stands": frozen(network), "BatchNorm apart": plain(network)}
    contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    found["channels first"] = frozen(contiguous)
    found["support in chunks"] = chunked(frozen(network))
    found["bf16"] = half(frozen(network))
    if compiled:
        found["compiled"] = torch.compile(frozen(network))
        found["bf16, compiled"] = torch.compile(half(frozen(network)))
    return found


def gradient(features: Features, x_s: Tensor, y_s: Tensor, x_b: Tensor, y_b: Tensor, config: DistillConfig) -> Tensor:
    """Return the outer loss's gradient to X_s as network input."""
    x = x_s.detach().requires_grad_()
    with torch.no_grad():
        f_b = torch.cat([features(part) for part in x_b.split(CHUNK)])
    kernel, ridge = ssdd_ext.Linear(bias=config.bias), ssdd_ext.Ridge.trace(config.ridge)
    return torch.autograd.grad(ssdd_ext.krr_mse(features(x), y_s, f_b, y_b, kernel=kernel, ridge=ridge), [x])[0]


def pool_update(network: Network, x_s: Tensor, y_s: Tensor, cast: bool) -> None:
    network.train()
    with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
        loss = F.mse_loss(network(x_s), y_s)
    network.zero_grad()
    loss.backward()


def measure_levers(
    begun: tuple[torch.nn.Module, Job, State, Batches],
    shape: dict[str, Any],
    rounds: int,
    limit: float,
    compiled: bool,
) -> list[dict[str, Any]]:
    """Return one row per lever and part: support forward and backward, query forward, pool update."""
    _, job, state, _ = begun
    data, config = job.data, job.config
    network = state.pool.members[0].network
    rows = torch.arange(config.batch)
    x_b, y_b = data.preprocessing(data.x_train[rows]), job.representations[rows]
    x_s, y_s = data.preprocessing.normalise(state.x_s.detach()), state.y_s.detach()
    wide = plain(network).double()  # type: ignore[attr-defined]
    exact = gradient(wide, x_s.double(), y_s.double(), x_b.double(), y_b.double(), config)
    ways = roads(network, compiled)
    errors = {
        name: float((gradient(f, x_s, y_s, x_b, y_b, config).double() - exact).norm() / exact.norm())
        for name, f in ways.items()
    }
    cotangent = torch.randn(len(x_s), network.dimension) / x_s.numel()
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, f in ways.items():
        calls["support", name] = lambda f=f: _backward(f, x_s, cotangent)
        if name != "support in chunks":
            calls["query", name] = lambda f=f: _forward(f, x_b)
    other = copy.deepcopy(network)
    first = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    calls["pool update", "as it stands"] = lambda: pool_update(other, x_s, y_s, False)
    calls["pool update", "channels first"] = lambda: pool_update(first, x_s, y_s, False)
    calls["pool update", "bf16"] = lambda: pool_update(other, x_s, y_s, True)
    if compiled:
        small = copy.deepcopy(network)
        small.compile()
        calls["pool update", "compiled"] = lambda: pool_update(small, x_s, y_s, False)
        half_small = copy.deepcopy(network)
        half_small.compile()
        calls["pool update", "bf16, compiled"] = lambda: pool_update(half_small, x_s, y_s, True)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()  # compilation happens here
    begin = time.perf_counter()
    for i in range(rounds):
        if i > 1 and time.perf_counter() - begin > limit:
            break
        for key, call in calls.items():
            at = time.process_time()
            call()
            samples[key].append(time.process_time() - at)
    found = []
    for (part, name), seconds in samples.items():
        time_, now = summary(seconds), summary(samples[part, "as it stands"])["median"]
        found.append(
            {
                "shape": shape,
                "part": part,
                "lever": name,
                "seconds": time_,
                "ratio": now / time_["median"],
                "gradient_error": errors.get(name) if part != "pool update" else None,
                **machine.describe("cpu"),
            }
        )
        error = "" if found[-1]["gradient_error"] is None else f"  gradient error {errors[name]:.1e}"
        print(
            f"{shape['preset']:12} {part:12} {name:18} {seconds_text(time_['median']):>9} "
            f"{found[-1]['ratio']:6.2f}x{error}",
            flush=True,
        )
    return found


def _backward(f: Features, x_s: Tensor, cotangent: Tensor) -> None:
    x = x_s.detach().requires_grad_()
    torch.autograd.grad(f(x), [x], cotangent)


@torch.no_grad()
def _forward(f: Features, x_b: Tensor) -> None:
    for part in x_b.split(CHUNK):
        f(part)
