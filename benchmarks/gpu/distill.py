"""An outer step of the distillation on a GPU: the published loop, then one lever at a time added to it.

Shapes of the ``cifar100`` preset: 1,000 distilled images, batches of 1,024 real ones, a ConvNet of 128-256-512 channels
(8,192 features), a ResNet-18 as the teacher (512 representations), a pool of 10 networks. Images are random, as their
values do not change the time. Each time has the relative error of the outer gradient to the distilled images, on one
network and one batch, against float64.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from journal import Item, open_journal, run_items, step_parser
from torch import Tensor, nn

import ssdd_ext
from ssdd.models import build, frozen
from ssdd.teachers.teacher import teacher_backbone
from ssdd_ext import Linear, Ridge


@dataclass(frozen=True)
class Sizes:
    images: int = 1000
    batch: int = 1024
    student: str = "convnet-128-256-512"
    teacher: str = "resnet18"
    teacher_widths: tuple[int, ...] = ()
    side: int = 32
    pool: int = 10
    real: int = 4096


SMALL = Sizes(10, 12, "convnet-8-16", "convnet", (8, 16), 8, 2, 40)


@dataclass(frozen=True)
class Levers:
    """The options of a step. The default is the published loop."""

    teacher_cached: bool = False  # read the teacher's stored representations of the batch
    native: bool = False  # ssdd_ext.krr_mse instead of a ones column, two products and an LU
    no_waiting: bool = False  # no loss.item() and no empty_cache() in the loop
    channels_last: bool = False
    folded: bool = False  # BatchNorm folded into the convolutions if no weight is trained
    bf16: bool = False  # autocast of the networks' forward and backward; KRR and the optimisers stay in float32
    compiled: bool = False
    graph: bool = False  # the whole step captured in a CUDA graph, one per network of the pool

    def names(self) -> str:
        chosen = [name for name, value in vars(self).items() if value]
        return ", ".join(chosen).replace("_", " ") or "published loop"


LEVERS = ("teacher_cached", "native", "no_waiting", "channels_last", "folded", "bf16", "compiled", "graph")


class Loop:
    """The outer loop with the given levers. Each :meth:`step` updates images, targets and one network."""

    def __init__(self, sizes: Sizes, levers: Levers, device: str) -> None:
        self.sizes, self.levers, self.device = sizes, levers, device
        torch.manual_seed(0)
        side = (sizes.side, sizes.side)
        self.real = torch.rand(sizes.real, 3, *side).to(device)
        self.teacher = teacher_backbone(sizes.teacher, 3, side, sizes.teacher_widths).eval().requires_grad_(False)
        outputs = self.teacher.dimension
        self.representations = torch.randn(sizes.real, outputs).to(device)
        self.teacher.to(device)
        networks = [build(sizes.student, 3, side, outputs).to(device) for _ in range(sizes.pool)]
        x_s, y_s = torch.rand(sizes.images, 3, *side).to(device), torch.randn(sizes.images, outputs).to(device)
        if levers.channels_last:
            last = torch.channels_last
            networks = [n.to(memory_format=last) for n in networks]  # type: ignore[call-overload]
            x_s, self.real = x_s.contiguous(memory_format=last), self.real.contiguous(memory_format=last)
        self.networks = networks
        self.x_s, self.y_s = x_s.requires_grad_(), y_s.requires_grad_()
        fast = levers.no_waiting and device == "cuda"
        self.outer = torch.optim.AdamW(
            [self.x_s, self.y_s], lr=1e-4, weight_decay=0.0, fused=fast, capturable=levers.graph
        )
        self.inner = [
            torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=fast) for n in networks
        ]
        self.rows = torch.zeros(sizes.batch, dtype=torch.long, device=device)
        self.generator = torch.Generator().manual_seed(1)
        self.train = torch.compile(self._train_loss) if levers.compiled else self._train_loss
        self.outer_loss = torch.compile(self._outer_loss) if levers.compiled else self._outer_loss
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def _cast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.levers.bf16 else nullcontext()

    def features(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        if self.levers.folded:
            return frozen(network)  # type: ignore[arg-type]
        network.eval().requires_grad_(False)
        return network.features  # type: ignore[return-value]

    def krr(self, f_s: Tensor, y_s: Tensor, f_b: Tensor, y_b: Tensor) -> Tensor:
        if self.levers.native:
            return ssdd_ext.krr_mse(
                f_s, y_s, f_b, y_b, kernel=Linear(bias=1.0), ridge=Ridge.trace(1e-6), on_failure="nan"
            )
        f_s, f_b = (torch.cat([f, f.new_ones(len(f), 1)], 1) for f in (f_s, f_b))
        k_ss, k_bs = f_s @ f_s.T, f_b @ f_s.T
        ridge = 1e-6 * k_ss.detach().trace() * torch.eye(len(k_ss), dtype=k_ss.dtype, device=k_ss.device)
        return F.mse_loss(k_bs @ torch.linalg.solve(k_ss + ridge, y_s), y_b)

    def _outer_loss(self, network: nn.Module, x_s: Tensor, y_s: Tensor, x_b: Tensor, y_b: Tensor) -> Tensor:
        features = self.features(network)
        with self._cast():
            f_s = features(x_s)
            with torch.no_grad():
                f_b = features(x_b)
        wide = y_s.dtype
        keep = self.levers.native and self.device == "cuda"  # the CUDA kernels read 16-bit features directly
        return self.krr(f_s if keep else f_s.to(wide), y_s, f_b if keep else f_b.to(wide), y_b)

    def _train_loss(self, network: nn.Module, x_s: Tensor, y_s: Tensor) -> Tensor:
        with self._cast():
            predicted = network(x_s)
        return F.mse_loss(predicted.float(), y_s)

    def body(self, i: int) -> Tensor:
        """Run one step with network ``i`` on the real images ``self.rows``."""
        network, inner = self.networks[i], self.inner[i]
        x_b = self.real[self.rows]
        if self.levers.teacher_cached:
            y_b = self.representations[self.rows]
        else:
            x_b = F.pad(x_b, (4, 4, 4, 4))[:, :, 2 : 2 + self.sizes.side, 2 : 2 + self.sizes.side].flip(3).contiguous()
            with torch.no_grad():
                y_b = self.teacher(x_b)
        loss = self.outer_loss(network, self.x_s, self.y_s, x_b, y_b)
        self.x_s.grad, self.y_s.grad = torch.autograd.grad(loss, (self.x_s, self.y_s))
        self.outer.step()
        network.train().requires_grad_(True)
        error = self.train(network, self.x_s.detach(), self.y_s.detach())
        for p, g in zip(network.parameters(), torch.autograd.grad(error, list(network.parameters())), strict=True):
            p.grad = g
        inner.step()
        return loss.detach()

    def step(self) -> None:
        i = int(torch.randint(self.sizes.pool, (), generator=self.generator))
        chosen = torch.randperm(self.sizes.real, generator=self.generator)[: self.sizes.batch]
        self.rows.copy_(chosen, non_blocking=True)
        if self.graphs:
            self.graphs[i].replay()
            return
        loss = self.body(i)
        if not self.levers.no_waiting:
            if self.device == "cuda":
                torch.cuda.empty_cache()
            loss.item()

    def capture(self) -> None:
        """Capture one CUDA graph per network, all in one memory pool."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for i in range(self.sizes.pool):
                for _ in range(2):
                    self.body(i)
        torch.cuda.current_stream().wait_stream(side)
        graphs, pool = [], torch.cuda.graph_pool_handle()
        for i in range(self.sizes.pool):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self.body(i)
            graphs.append(graph)
        self.graphs = graphs

    def gradient(self) -> Tensor:
        """Return the outer loss's gradient to the distilled images, on the first network and the first real images."""
        n = self.sizes.batch
        loss = self.outer_loss(self.networks[0], self.x_s, self.y_s, self.real[:n], self.representations[:n])
        return torch.autograd.grad(loss, self.x_s)[0]

    def exact_gradient(self) -> Tensor:
        """Compute the same in float64 by the plain formulation."""
        network = copy.deepcopy(self.networks[0]).double().eval().requires_grad_(False)
        n, x_s = self.sizes.batch, self.x_s.detach().double().requires_grad_()
        plain = Loop.__new__(Loop)
        plain.levers, plain.device = Levers(), self.device
        with torch.no_grad():
            f_b = network.features(self.real[:n].double())
        loss = plain.krr(network.features(x_s), self.y_s.detach().double(), f_b, self.representations[:n].double())
        return torch.autograd.grad(loss, x_s)[0]


def measure(sizes: Sizes, levers: Levers, device: str, steps: int, seconds: float, base: list[float]) -> dict[str, Any]:
    """Return median seconds of a step, in blocks of five between synchronisations; ``base[0]`` is the published
    loop's."""
    loop = Loop(sizes, levers, device)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    exact = loop.exact_gradient()
    error = float((loop.gradient().double() - exact).norm() / exact.norm())
    del exact
    if levers.graph:
        loop.capture()
    for _ in range(3):
        loop.step()
    wait()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < steps and (len(times) < 3 or time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        for _ in range(5):
            loop.step()
        wait()
        times.append((time.perf_counter() - start) / 5)
    finite = bool(torch.isfinite(loop.x_s).all())
    median = statistics.median(times)
    base.append(median)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
    text = f"{median * 1e3:.2f} ms, {base[0] / median:.2f}x of the published loop, gradient error {error:.1e}"
    if not finite:
        raise AssertionError(f"images are not finite after the steps ({text})")
    return {
        "levers": vars(levers),
        "seconds": median,
        "samples": times,
        "ratio": base[0] / median,
        "gradient_error": error,
        "peak_bytes": memory,
        "sizes": vars(sizes),
        "text": text,
    }


def items(sizes: Sizes, device: str, steps: int, seconds: float, base: list[float]) -> Iterator[Item]:
    levers = Levers()
    yield levers.names(), partial(measure, sizes, levers, device, steps, seconds, base)
    for name in LEVERS:
        if device == "cpu" and name in ("compiled", "graph"):
            continue
        if name == "graph":  # on some versions compiled code allocates and seeds in ways that a capture forbids
            plain = replace(levers, compiled=False, graph=True)
            yield "+ graph, not compiled", partial(measure, sizes, plain, device, steps, seconds, base)
        levers = replace(levers, **{name: True})
        yield f"+ {name.replace('_', ' ')}", partial(measure, sizes, levers, device, steps, seconds, base)


def main(argv: Sequence[str] | None = None) -> int:
    p = step_parser(__doc__, "distill", quick="a hundredth of the size: shows that the script runs")
    p.add_argument("--steps", type=int, default=10, help="most samples of five steps each")
    p.add_argument("--seconds", type=float, default=4.0, help="no new sample of a row after this, beyond three")
    a = p.parse_args(argv)
    journal = open_journal(a.out, "distill")
    sizes, steps, seconds = (SMALL, 2, 0.0) if a.quick else (Sizes(), a.steps, a.seconds)
    base = [line["seconds"] for line in journal.ended() if "levers" in line][:1]  # of a run that this one continues
    return 0 if run_items(items(sizes, a.device, steps, seconds, base), journal) else 1


if __name__ == "__main__":
    sys.exit(main())
