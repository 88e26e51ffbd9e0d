"""An outer step of KRR-ST in its parts, beside the published loop in plain PyTorch.

Same networks, shapes and process. The published loop runs the teacher at every step, feeds views, appends a column of
ones, solves by LU, reads the loss back and empties the memory cache; here the teacher's representations are read, the
student's BatchNorms folded, and the loss is one call. The ceiling is what the multiply counts of the published loop
give once the teacher is left out; a step should reach 90% of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import arguments, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ssdd_ext
from ssdd.config import DistillConfig
from ssdd.data import ImageSet, crop_and_flip
from ssdd.distill import inputs, run, start
from ssdd.models import Network, build, frozen, in_chunks, seeded
from ssdd.models.convnet import ConvNet
from ssdd.models.resnet import ResNet
from ssdd_ext.bench import interleaved, machine, seconds_text, summary

AIM = 0.90
PARTS = ("teacher", "support forward and backward", "query forward", "KRR", "pool update", "step")
FOREVER = 10**9


@dataclass(frozen=True)
class Shape:
    """The sizes of a preset: ``images`` S, ``batch`` Q, the student by name, the teacher by its widths (none: ResNet-18
    with the published stem)."""

    name: str
    images: int
    batch: int
    student: str
    teacher: tuple[int, ...] = ()
    side: int = 32
    channels_last: bool = False


SHAPES = (
    Shape("cifar10-cpu", 200, 512, "convnet-32-64-128", (32, 64, 128, 256), channels_last=True),
    Shape("cifar100", 1000, 1024, "convnet-128-256-512", channels_last=True),
)
TINY = (Shape("tiny", 6, 12, "convnet-4-8", (4, 8), side=8),)


class Published:
    """The loop as published, in plain PyTorch; each part a method, :meth:`step` all of them in turn."""

    def __init__(self, shape: Shape, data: ImageSet, x_s: Tensor, y_s: Tensor, config: DistillConfig) -> None:
        self.data, self.config, self.shape = data, config, shape
        self.teacher = teacher(shape).eval()
        self.network = student(shape, y_s.shape[1], channels_last=False)
        self.x_s, self.y_s = x_s.clone().requires_grad_(), y_s.clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.x_s, self.y_s], lr=config.rate, weight_decay=config.weight_decay)
        self.pool_optimizer = torch.optim.SGD(
            self.network.parameters(), lr=config.pool_rate, momentum=config.pool_momentum,
            weight_decay=config.pool_weight_decay,
        )  # fmt: skip
        self.generator = torch.Generator().manual_seed(0)

    def batch(self) -> Tensor:
        """Different images in a random view."""
        rows = torch.randperm(len(self.data.x_train), generator=self.generator)[: self.config.batch]
        pixels = self.data.x_train[rows].permute(0, 3, 1, 2).float().div(255)
        return self.data.preprocessing.normalise(crop_and_flip(pixels, self.config.crop_pad, self.generator))

    @torch.no_grad()
    def represent(self, x_b: Tensor) -> Tensor:
        return self.teacher(x_b)

    def support(self) -> Tensor:
        self.network.eval()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        features = self.network.features(self.data.preprocessing.normalise(self.x_s))
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        return features

    @torch.no_grad()
    def query(self, x_b: Tensor) -> Tensor:
        self.network.eval()
        return self.network.features(x_b)

    def krr(self, f_s: Tensor, y_s: Tensor, f_b: Tensor, y_b: Tensor) -> Tensor:
        """Section 3.3 of the paper: a column of ones, λ = 1e-6 tr(K), a general solve, the mean squared error."""
        f_s, f_b = (torch.cat([f, f.new_ones(len(f), 1)], 1) for f in (f_s, f_b))
        k_ss, k_bs = f_s @ f_s.T, f_b @ f_s.T
        ridge = self.config.ridge * k_ss.detach().trace() * torch.eye(len(k_ss))
        return F.mse_loss(k_bs @ torch.linalg.solve(k_ss + ridge, y_s), y_b)

    def pool_update(self) -> None:
        self.network.train()
        loss = F.mse_loss(self.network(self.data.preprocessing.normalise(self.x_s.detach())), self.y_s.detach())
        self.pool_optimizer.zero_grad()
        loss.backward()
        self.pool_optimizer.step()

    def step(self) -> float:
        x_b = self.batch()
        y_b = self.represent(x_b)
        loss = self.krr(self.support(), self.y_s, self.query(x_b), y_b)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.pool_update()
        torch.cuda.empty_cache()  # does nothing without a GPU
        return loss.item()


def teacher(shape: Shape) -> torch.nn.Module:
    side = (shape.side, shape.side)
    make = (lambda: ConvNet(3, side, shape.teacher, pooled=True)) if shape.teacher else (lambda: ResNet(3))
    return seeded(make, 1)


def student(shape: Shape, outputs: int, channels_last: bool) -> Network:
    network = seeded(lambda: build(shape.student, 3, (shape.side, shape.side), outputs), 0)
    return network.to(memory_format=torch.channels_last) if channels_last else network


def flops(call: Callable[[], Any]) -> int:
    """Multiplications and additions of the convolutions and products in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def backward_of(loss: Callable[[], Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(), list(wanted))


def measure(shape: Shape, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """One row a part, the step last: seconds of both, their ratio, and the errors that were checked before."""
    g = torch.Generator().manual_seed(0)
    n = max(2 * shape.batch, shape.images)
    data = ImageSet("random", *(torch.randint(0, 256, (k, shape.side, shape.side, 3), generator=g, dtype=torch.uint8)
                                for k in (n, 2)))  # fmt: skip
    wide = teacher(shape).eval()
    with torch.no_grad():
        representations = torch.cat([wide(data.preprocessing(part)) for part in data.x_train.split(256)])
    outputs = representations.shape[1]
    config = DistillConfig(
        images=shape.images, batch=shape.batch, pool=1, pool_steps=2, log_every=FOREVER, steps=FOREVER
    )  # fmt: skip
    state = start(data, representations, partial(student, shape, outputs, shape.channels_last), config, seed=0)
    state.pool.fill(inputs(state, data, config).detach(), state.y_s.detach())
    state.pool.config = config = replace(config, pool_steps=FOREVER)  # one network, never replaced
    ours, theirs = state.pool.members[0], Published(shape, data, state.x_s.detach(), state.y_s.detach(), config)
    theirs.network.load_state_dict(ours.network.state_dict())

    rows = torch.arange(shape.batch)
    x_b, y_b = data.preprocessing(data.x_train[rows]), representations[rows]
    x_s, y_s = inputs(state, data, config).detach(), state.y_s.detach()
    features = frozen(ours.network)
    f_s, f_b = theirs.support().detach(), theirs.query(x_b)
    cotangent = torch.randn(f_s.shape, generator=g) / f_s.numel()
    f_s, y_s = f_s.requires_grad_(), y_s.clone().requires_grad_()
    kernel, ridge = ssdd_ext.Linear(bias=config.bias), ssdd_ext.Ridge.trace(config.ridge)

    def our_krr() -> Tensor:
        return ssdd_ext.krr_mse(f_s, y_s, f_b, y_b, kernel=kernel, ridge=ridge, on_failure="nan")

    def our_support() -> Tensor:
        return (features(inputs(state, data, config)) * cotangent).sum()

    def our_pool_update() -> None:
        state.pool.advance([ours], x_s, state.y_s.detach())

    def their_krr() -> Tensor:
        return theirs.krr(f_s, y_s, f_b, y_b)

    def their_support() -> Tensor:
        return (theirs.support() * cotangent).sum()

    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "teacher": (lambda: theirs.represent(x_b), lambda: representations[rows]),
        "support forward and backward": (
            lambda: backward_of(their_support, [theirs.x_s]), lambda: backward_of(our_support, [state.x_s])
        ),
        "query forward": (lambda: theirs.query(x_b), lambda: in_chunks(frozen(ours.network), x_b)),
        "KRR": (lambda: backward_of(their_krr, [f_s, y_s]), lambda: backward_of(our_krr, [f_s, y_s])),
        "pool update": (theirs.pool_update, our_pool_update),
        "step": (theirs.step, lambda: run(state, data, representations, config, until=state.step + 1)),
    }  # fmt: skip
    # The two that update weights come last: all others are compared, and counted, on the same network.
    errors = {part: error(*(call() for call in calls[part])) for part in PARTS[:4]}
    counts = {part: flops(calls[part][0]) for part in PARTS}
    ceiling = counts["step"] / (counts["step"] - counts["teacher"])
    found = []
    for part in PARTS:
        samples = interleaved(dict(zip(("published", "ssdd"), calls[part], strict=True)), "cpu", repeats, seconds)
        times = {name: summary(t) for name, t in samples.items()}
        ratio = times["published"]["median"] / times["ssdd"]["median"]
        found.append({
            "shape": asdict(shape), "part": part, "seconds": times, "ratio": ratio, "error": errors.get(part),
            "published_flops": counts[part], "ceiling": ceiling if part == "step" else None,
            "of_ceiling": ratio / ceiling if part == "step" else None, "aim": AIM if part == "step" else None,
            **machine.describe("cpu"),
        })  # fmt: skip
        print(line(found[-1]), flush=True)
    return found


def error(theirs: Any, ours: Any) -> float:
    """The largest relative difference, in the Frobenius norm, of what the two return."""
    pairs = zip(*((r if isinstance(r, tuple) else (r,)) for r in (theirs, ours)), strict=True)
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def line(row: dict[str, Any]) -> str:
    times = {name: seconds_text(t["median"]) for name, t in row["seconds"].items()}
    text = f"{row['shape']['name']:12} {row['part']:30} published {times['published']:>9}  ssdd {times['ssdd']:>9}  "
    text += f"{row['ratio']:8.2f}x"
    if row["error"] is not None:
        text += f"  difference {row['error']:.1e}"
    if row["ceiling"] is not None:
        text += f"  ceiling {row['ceiling']:.2f}x, {row['of_ceiling']:.0%} of it (aim {row['aim']:.0%})"
    return text


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    a = arguments(__doc__, 60.0, argv)
    if a.device != "cpu":
        raise SystemExit("--device: the outer loop runs on the CPU; give --device cpu")
    rows = [row for shape in (TINY if a.quick else SHAPES) for row in measure(shape, a.repeats, a.seconds)]
    write(a, "distill", rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
