"""An outer step of KRR-ST in its parts, compared with the published loop in plain PyTorch, at the presets' shapes.

Both use the same networks, images and number of threads, and their steps alternate, so that a change of the machine's
speed affects both. The published loop runs the teacher on a view of each batch, appends a column of ones, solves by LU,
keeps BatchNorm separate, empties the memory cache and reads the loss. Our loop reads stored representations. The
ceiling is the ratio of the published loop's multiplications with and without the teacher's; a step should reach 90% of
it.

``--levers`` measures options that could make a step faster, each with the error of the outer gradient that it causes.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from levers import measure_levers
from timing import apply_arguments, parser, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ssdd_ext
from ssdd.config import DistillConfig, Settings, preset
from ssdd.data import ImageSet, crop_and_flip
from ssdd.distillation import Job
from ssdd.distillation.batches import Batches
from ssdd.distillation.loop import begin as begin_job
from ssdd.distillation.loop import decay_lr, inputs, run
from ssdd.distillation.pool import Member
from ssdd.distillation.state import State
from ssdd.models import Network, build, frozen, in_chunks
from ssdd.teachers.teacher import teacher_backbone
from ssdd_ext.bench import machine, seconds_text, summary

AIM = 0.90
PARTS = ("batch", "teacher", "support", "query", "KRR", "outer AdamW", "pool update")
"""Of a step. "support": features of X_s, forward and backward. "query": of the real batch, forward. "KRR": both."""
FOREVER = 10**9
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}
"""The second leaves out what others did meanwhile: for one thread on a machine that is shared."""
LEAST = 3
"""Rounds that are taken whatever they cost."""
PRESETS = ("cifar10-cpu", "cifar100")
SIDE = 32


@dataclass(frozen=True)
class Shape:
    """The sizes of a preset; colour images of ``side`` x ``side`` pixels."""

    preset: str
    images: int
    batch: int
    student: str
    channels_last: bool
    pool: int
    teacher: str
    teacher_widths: tuple[int, ...]
    side: int

    @classmethod
    def of(cls, settings: Settings, side: int = SIDE) -> Shape:
        d, s, t = settings.distill, settings.student, settings.teacher
        return cls(settings.name, d.images, d.batch, s.model, s.channels_last, d.pool, t.backbone, t.widths, side)

    def make_teacher(self) -> torch.nn.Module:
        torch.manual_seed(1)
        return teacher_backbone(self.teacher, 3, (self.side, self.side), self.teacher_widths).eval()

    def make_student(self, outputs: int) -> Network:
        network = build(self.student, 3, (self.side, self.side), outputs)
        return network.to(memory_format=torch.channels_last) if self.channels_last else network  # type: ignore


TINY = Shape("tiny", 6, 12, "convnet-4-8", True, 2, "convnet", (4, 8), 8)


class Stopwatch:
    """Measures seconds of each part of a step, and multiplications and additions if there is a ``counter``."""

    def __init__(self, clock: Clock = time.perf_counter, counter: FlopCounterMode | None = None) -> None:
        self.clock, self.counter, self.seconds, self.flops = (
            clock,
            counter,
            dict.fromkeys(PARTS, 0.0),
            dict.fromkeys(PARTS, 0),
        )
        self.begun, self.counted = self.clock(), 0

    def lap(self, part: str) -> None:
        now, total = self.clock(), 0 if self.counter is None else self.counter.get_total_flops()
        self.seconds[part] += now - self.begun
        self.flops[part] += total - self.counted
        self.begun, self.counted = now, total


class Published:
    """The published loop in plain PyTorch, with copies of the networks and pairs of ``state``."""

    def __init__(self, teacher: torch.nn.Module, job: Job, state: State) -> None:
        config = job.config
        self.teacher, self.data, self.config = teacher, job.data, config
        self.networks = [
            copy.deepcopy(m.network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for m in state.pool.members
        ]
        self.optimizers = [
            torch.optim.SGD(
                n.parameters(), lr=config.pool_lr, momentum=config.pool_momentum, weight_decay=config.pool_weight_decay
            )
            for n in self.networks
        ]
        self.x_s, self.y_s = (x.detach().clone().requires_grad_() for x in (state.x_s, state.y_s))
        self.optimizer = torch.optim.AdamW([self.x_s, self.y_s], lr=config.lr, weight_decay=config.weight_decay)
        self.generator = torch.Generator().manual_seed(0)

    def krr(self, f_s: Tensor, y_s: Tensor, f_b: Tensor, y_b: Tensor) -> Tensor:
        """Compute section 3.3 of the paper: a column of ones, λ = 1e-6 tr(K), a general solve, the mean squared
        error."""
        f_s, f_b = (torch.cat([f, f.new_ones(len(f), 1)], 1) for f in (f_s, f_b))
        k_ss, k_bs = f_s @ f_s.T, f_b @ f_s.T
        ridge = self.config.ridge * k_ss.detach().trace() * torch.eye(len(k_ss))
        return F.mse_loss(k_bs @ torch.linalg.solve(k_ss + ridge, y_s), y_b)

    def step(self, watch: Stopwatch) -> float:
        config, normalise = self.config, self.data.preprocessing.normalise
        i = int(torch.randint(0, len(self.networks), (), generator=self.generator))
        network, optimizer = self.networks[i], self.optimizers[i]
        rows = torch.randperm(len(self.data.x_train), generator=self.generator)[: config.batch]
        pixels = self.data.x_train[rows].permute(0, 3, 1, 2).float().div(255)
        x_b = normalise(crop_and_flip(pixels, config.crop_pad, self.generator)).contiguous()
        watch.lap("batch")
        with torch.no_grad():
            y_b = self.teacher(x_b)
        watch.lap("teacher")
        network.eval().requires_grad_(False)
        features = network.features(normalise(self.x_s))
        watch.lap("support")
        with torch.no_grad():
            f_b = network.features(x_b)
        watch.lap("query")
        f_s = features.detach().requires_grad_()
        loss = self.krr(f_s, self.y_s, f_b, y_b)
        self.optimizer.zero_grad()
        loss.backward()
        watch.lap("KRR")
        features.backward(f_s.grad)
        watch.lap("support")
        self.optimizer.step()
        watch.lap("outer AdamW")
        network.train().requires_grad_(True)
        error = F.mse_loss(network(normalise(self.x_s.detach())), self.y_s.detach())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        watch.lap("pool update")
        torch.cuda.empty_cache()  # does nothing without a GPU
        value = loss.item()
        watch.lap("outer AdamW")
        return value


def our_step(job: Job, state: State, batches: Batches, watch: Stopwatch) -> float:
    """Run one step of ``distillation.loop.run`` in separate calls, to the same bits; :func:`check` compares them."""
    [member] = state.pool.draw()
    x_b, y_b, _ = batches.draw(state.generator)
    watch.lap("batch")
    f = frozen(member.network)
    features = f(inputs(job, state))[None]
    watch.lap("support")
    f_b = in_chunks(f, x_b)[None]
    watch.lap("query")
    f_s = features.detach().requires_grad_()
    kernel, ridge = ssdd_ext.Linear(bias=job.config.bias), ssdd_ext.Ridge.trace(job.config.ridge)
    loss = ssdd_ext.krr_mse(f_s, state.y_s, f_b, y_b, kernel=kernel, ridge=ridge, on_failure="nan").mean()
    state.optimizer.zero_grad()
    loss.backward()
    watch.lap("KRR")
    features.backward(f_s.grad)
    watch.lap("support")
    for group in state.optimizer.param_groups:
        group["lr"] = decay_lr(state.step, job.config)
    state.optimizer.step()
    watch.lap("outer AdamW")
    state.pool.advance([member], inputs(job, state).detach(), state.y_s.detach())
    watch.lap("pool update")
    state.step += 1
    state.loss_sum += loss.detach()
    watch.lap("outer AdamW")
    return 0.0


def begin(shape: Shape) -> tuple[torch.nn.Module, Job, State, Batches]:
    """Return teacher, job, a state whose pool holds networks that are never replaced, and the job's batches."""
    g = torch.Generator().manual_seed(0)
    n = max(shape.batch, shape.images) + 1
    data = ImageSet(
        "random",
        *(torch.randint(0, 256, (k, shape.side, shape.side, 3), generator=g, dtype=torch.uint8) for k in (n, 2)),
    )
    wide = shape.make_teacher()
    outputs = wide.dimension
    representations = torch.randn(n, outputs, generator=g)  # the numbers do not change the time
    settings = preset(shape.preset).distill if shape.preset != TINY.preset else DistillConfig()
    config = replace(
        settings,
        images=shape.images,
        batch=shape.batch,
        pool=shape.pool,
        pool_steps=FOREVER,
        log_every=FOREVER,
        steps=FOREVER,
    )
    job = Job(data, representations, lambda: shape.make_student(outputs), config)
    state, batches = begin_job(job)
    state.pool.members = [state.pool._start(i) for i in range(shape.pool)]  # of age 0: the age does not change the time
    state.snapshots[0] = state.x_s.detach().clone()
    return wide, job, state, batches


def check(shape: Shape = TINY) -> None:
    """Check that the timed step equals the loop's to the bit, and that the published loss equals ours."""
    _, job, state, batches = begin(shape)
    _, _, other, _ = begin(shape)
    for _ in range(3):
        our_step(job, state, batches, Stopwatch())
        run(job, other, batches, until=other.step + 1)
    weights = [[p for m in s.pool.members for p in m.network.parameters()] for s in (state, other)]
    assert torch.equal(state.x_s, other.x_s) and torch.equal(state.y_s, other.y_s)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def agreement(theirs: Published, member: Member, job: Job, state: State) -> float:
    """Return the relative difference of the outer gradients of X_s, on one batch and one network."""
    rows = torch.arange(theirs.config.batch)
    data = job.data
    x_b, y_b = data.preprocessing(data.x_train[rows]), job.representations[rows]
    f = frozen(member.network)
    kernel, ridge = ssdd_ext.Linear(bias=theirs.config.bias), ssdd_ext.Ridge.trace(theirs.config.ridge)
    ours = ssdd_ext.krr_mse(f(inputs(job, state)), state.y_s, in_chunks(f, x_b), y_b, kernel=kernel, ridge=ridge)
    network = theirs.networks[state.pool.members.index(member)].eval().requires_grad_(False)
    with torch.no_grad():
        f_b = network.features(x_b)
    published = theirs.krr(network.features(data.preprocessing.normalise(theirs.x_s)), theirs.y_s, f_b, y_b)
    a, b = (torch.autograd.grad(loss, [x])[0] for loss, x in ((published, theirs.x_s), (ours, state.x_s)))
    return float((a - b).norm() / a.norm())


def measure(shape: Shape, rounds: int, seconds: float, clock: str = "wall") -> list[dict[str, Any]]:
    """Return one row per part, the step last: seconds of both loops, their ratio, and the multiply counts."""
    wide, job, state, batches = begin(shape)
    theirs = Published(wide, job, state)
    difference = agreement(theirs, state.pool.members[0], job, state)
    taken: dict[str, list[Stopwatch]] = {"published": [], "ssdd": []}
    begun = time.perf_counter()
    for i in range(rounds + 1):  # the first step of each is not timed: it counts
        if i > LEAST and time.perf_counter() - begun > seconds:
            break
        with FlopCounterMode(display=False) if i == 0 else nullcontext() as counter:
            watch = Stopwatch(CLOCKS[clock], counter)
            theirs.step(watch)
        if i == 0:
            counts = watch.flops
        else:
            taken["published"].append(watch)
        watch = Stopwatch(CLOCKS[clock])
        our_step(job, state, batches, watch)
        if i > 0:
            taken["ssdd"].append(watch)
    total = sum(counts.values())
    ceiling = total / (total - counts["teacher"])
    found = []
    for part in (*PARTS, "step"):
        times = {
            name: summary([sum(w.seconds.values()) if part == "step" else w.seconds[part] for w in watches])
            for name, watches in taken.items()
        }
        ours = times["ssdd"]["median"]
        ratio = times["published"]["median"] / ours if ours > 1e-6 else None
        step = part == "step"
        found.append(
            {
                "shape": asdict(shape),
                "part": part,
                "seconds": times,
                "ratio": ratio,
                "published_flops": total if step else counts[part],
                "share_of_step": ours / statistics.median(sum(w.seconds.values()) for w in taken["ssdd"]),
                "ceiling": ceiling if step else None,
                "of_ceiling": ratio / ceiling if step and ratio else None,
                "clock": clock,
                "allocator": allocator(),
                "aim": AIM if step else None,
                "gradient_difference": difference if step else None,
                **machine.describe("cpu"),
            }
        )
        print(line(found[-1]), flush=True)
    return found


def allocator() -> dict[str, str]:
    """Describe the C library's settings for large blocks: returned to the system after each use, or kept."""
    return {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}


def line(row: dict[str, Any]) -> str:
    times = {name: seconds_text(t["median"]) for name, t in row["seconds"].items()}
    text = f"{row['shape']['preset']:12} {row['part']:12} published {times['published']:>9}  ssdd {times['ssdd']:>9}  "
    text += f"{row['ratio']:8.2f}x" if row["ratio"] else f"{'-':>9}"
    text += f"  {row['published_flops'] / 1e9:8.1f} GFLOP"
    if row["ceiling"] is not None:
        text += f"  ceiling {row['ceiling']:.2f}x, {row['of_ceiling']:.0%} of it (aim {row['aim']:.0%})"
        text += f"; gradients differ by {row['gradient_difference']:.1e}"
    return text


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    p = parser(__doc__, 45.0)
    p.add_argument("--shapes", default=",".join(PRESETS), help="presets, with commas between them")
    p.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="processor: for one thread alone")
    p.add_argument("--levers", action="store_true", help="measure what could make a step faster, one by one")
    a = apply_arguments(p.parse_args(argv))
    if a.device != "cpu":
        raise SystemExit("--device: this script times the CPU; give --device cpu")
    shapes = [TINY] if a.quick else [Shape.of(preset(name)) for name in a.shapes.split(",")]
    check()
    measured: Callable[[Shape], list[dict[str, Any]]] = (
        (lambda s: measure_levers(begin(s), asdict(s), a.repeats, a.seconds, compiled=not a.quick))
        if a.levers
        else (lambda s: measure(s, a.repeats, a.seconds, a.clock))
    )
    rows = [row for shape in shapes for row in measured(shape)]
    names = "" if a.shapes == ",".join(PRESETS) else "_" + a.shapes.replace(",", "_")
    write(a, ("distill_levers" if a.levers else "distill") + names, rows)
    return rows


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
