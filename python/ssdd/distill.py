"""KRR-ST: the outer loop (algorithm 1 of the paper), its state, and what it hands back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .artifact import DistilledSet, Preprocessing
from .checkpoint import Checkpoints, fingerprint
from .config import DistillConfig, Diverged, InputError, Report, as_dict, silent, versions
from .data import CPU, Crops, ImageSet, crop, crop_and_flip, draw_crops, placed, repeatable, sent, taken
from .models import Network, frozen, in_chunks
from .objective import outer_loss, realism, representation_error
from .parallel import ALONE, Processes
from .pool import Pool
from .select import kmeans_medoids, random_subset
from .teachers import Teacher, Views

Represent = Callable[[Tensor], Tensor]
"""A teacher as a callable: images [N, C, H, W], normalised as the data are -> representations [N, C]. A ``Teacher``
that wants its images normalised in another way gets them so."""

HEARD_EVERY = 16
"""Outer steps between two looks at whether another process was asked to stop, on a device that a look makes wait."""

SNAPSHOTS = 6
"""Moments of the run whose images are kept for the picture "distilled images over the steps"."""


@dataclass
class State:
    """All that changes while the loop runs; :meth:`state_dict` writes it, :meth:`load_state_dict` reads it."""

    x_s: Tensor  # [S, C, H, W] pixels, learned
    y_s: Tensor  # [S, C] targets, learned
    optimizer: torch.optim.AdamW
    pool: Pool
    generator: torch.Generator
    rows: Tensor  # training images that real batches are drawn from: all but the held-out ones; never changes
    views: tuple[Crops, Tensor] | None = None  # of every image, with their representations: config.views; never change
    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    good: tuple[Tensor, Tensor] | None = None  # X_s and Y_s at the last log line with a finite loss
    best: tuple[float, int, Tensor, Tensor] | None = None  # read-out, step, X_s and Y_s of the best read-out

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only. Continuing from it gives the same bits as never having stopped."""
        return {
            "x_s": self.x_s.detach().clone(), "y_s": self.y_s.detach().clone(),
            "optimizer": self.optimizer.state_dict(), "pool": self.pool.state_dict(),
            "generator": self.generator.get_state(), "step": self.step, "losses": list(self.losses),
            "loss_sum": self.loss_sum.clone(), "snapshots": dict(self.snapshots), "good": self.good,
            "best": self.best,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        with torch.no_grad():
            self.x_s.copy_(state["x_s"])
            self.y_s.copy_(state["y_s"])
        there = self.x_s.device
        self.optimizer.load_state_dict(state["optimizer"])
        self.pool.load_state_dict(state["pool"])
        self.generator.set_state(state["generator"])
        self.step, self.losses = state["step"], list(state["losses"])
        self.loss_sum = state["loss_sum"].to(there, copy=True)
        self.snapshots = {step: x.to(there) for step, x in state["snapshots"].items()}
        good = state["good"]
        self.good = None if good is None else (good[0].to(there), good[1].to(there))
        best = state["best"]
        self.best = None if best is None else (*best[:2], best[2].to(there), best[3].to(there))


@dataclass(frozen=True)
class Distillation:
    """What a run hands back: the product, the loss curve and the pictures' material."""

    result: DistilledSet
    losses: list[tuple[int, float]]
    """(outer step, mean outer loss since the entry before)."""
    snapshots: dict[int, Tensor]
    """Outer step -> X_s at that step, float32 [S, C, H, W] in pixels."""


@repeatable()
def distill(
    data: ImageSet,
    representations: Tensor,
    make: Callable[[], Network],
    config: DistillConfig,
    *,
    seed: int = 0,
    teacher: Represent | None = None,
    report: Report = silent,
    checkpoints: Checkpoints | None = None,
    processes: Processes = ALONE,
    device: torch.device = CPU,
    cache: str | os.PathLike[str] | None = None,
) -> Distillation:
    """Distil ``data`` into ``config.images`` pairs of image and target representation.

    ``representations``: g(X_t), float32 [N, C], a row a training image. ``make`` returns the network to distil for,
    with a new random start and C outputs. ``seed`` fixes the initial subset and every later draw; the same seed,
    machine and number of threads give the same bits. ``teacher`` is asked only where the configuration needs it
    (``real_view="augmented"``, ``teacher_in_loop="recomputed"``). With ``checkpoints`` the run goes on from the newest
    one there is, to the same bits as if it had never stopped; it raises :class:`Stopped` where it is asked to stop.
    The loop runs on ``device``; images stay uint8, and go there where they fit; ``teacher`` is asked there. Every draw
    is made in main memory: a seed draws the same on any device.
    ``processes``: those that share the run (:func:`ssdd.parallel.joined`); each calls this with the same arguments and
    gets the same result, and raises :class:`ProcessLost` where another is gone.
    ``cache``: the folder that keeps what a :class:`Teacher` says of known views (``config.views``); None: none does.

    Reports ``{"event": "distill", "step", "steps", "loss", "rate", "untrained_share", "mean_age"}`` every
    ``config.log_every`` steps. Raises :class:`InputError` for input that does not fit together, :class:`Diverged`
    (with the last good :class:`DistilledSet` in ``partial``) where the loss stops being finite.
    """
    network = teacher if isinstance(teacher, Teacher) else None
    if isinstance(teacher, Teacher):
        teacher = teacher.fed(data.preprocessing)
    check(data, representations, make, config, teacher, processes, device)
    state = start(data, representations, make, config, seed, processes, device)
    saved = checkpoints.begin(identity(data, representations, make, config, seed)) if checkpoints else None
    data, representations = data.on(device), placed(representations, device)
    if config.views and teacher is not None:
        state.views = known_views(data, config, seed, teacher, device, network, cache, processes)
    if saved is not None:
        state.load_state_dict(saved)
    processes.wait()  # all have read the newest checkpoint before one writes the next

    def keep() -> None:
        stop = processes.agree(checkpoints is not None and checkpoints.stop())
        if checkpoints and (stop or checkpoints.due() or len(state.pool.members) == config.pool):
            checkpoints.save(0, state.state_dict(), stop)

    state.pool.fill(inputs(state, data, config).detach(), state.y_s.detach(), report, keep)
    run(state, data, representations, config, seed, teacher, report, checkpoints=checkpoints)
    pairs = () if state.best is None else state.best[2:]
    snapshots = {step: x.cpu() for step, x in state.snapshots.items()}
    return Distillation(_product(state, data, config, seed, *pairs), state.losses, snapshots)


def run(
    state: State,
    data: ImageSet,
    representations: Tensor,
    config: DistillConfig,
    seed: int = 0,
    teacher: Represent | None = None,
    report: Report = silent,
    until: int | None = None,
    checkpoints: Checkpoints | None = None,
) -> None:
    """The outer loop, from ``state.step`` to ``until`` (default: the end). The state is all it changes."""
    processes = state.pool.processes
    learned = [x for group in state.optimizer.param_groups for x in group["params"]]
    while state.step < (config.steps if until is None else until):
        _keep_snapshot(state, config)
        drawn = state.pool.draw()
        x_b, y_b, weight = real_batch(state, data, representations, config, teacher)
        x_s, y_s = support(state, data, config, teacher)
        loss = outer_loss([member.network for member in processes.networks(drawn)], x_s, y_s, x_b, y_b, config)
        if config.smooth or config.near:
            loss = loss + realism(state.x_s, state.snapshots[0], config)
        state.optimizer.zero_grad()
        loss.backward()
        asked = checkpoints is not None and checkpoints.stop()
        heard = state.x_s.device.type == "cpu" or (state.step + 1) % HEARD_EVERY == 0
        total, stop = processes.combine(loss.detach(), [x.grad for x in learned], weight, asked, heard)
        for group in state.optimizer.param_groups:
            group["lr"] = rate(state.step, config)
        state.optimizer.step()
        tie(state, data, config, teacher)
        state.pool.advance(drawn, inputs(state, data, config).detach(), state.y_s.detach())
        state.step += 1
        state.loss_sum += total
        if state.step % config.log_every == 0 or state.step == config.steps:
            _log(state, data, config, seed, report)
        if config.readout_every and (state.step % config.readout_every == 0 or state.step == config.steps):
            _read_out(state, data, representations, config, seed, report)
        if checkpoints is not None and (stop or checkpoints.due() or state.step == config.steps):
            _stop_if_diverged(state, data, config, seed)  # such a state never takes the place of a good one
            checkpoints.save(state.step, state.state_dict(), stop)


def real_batch(
    state: State, data: ImageSet, representations: Tensor, config: DistillConfig, teacher: Represent | None
) -> tuple[Tensor, Tensor, float]:
    """X_b as network input [Q, C, H, W], Y_b = g(X_b) [Q, C], and their weight: Q different training images, drawn at
    random. Of several processes each gets its part, and the part's weight in the mean over the whole."""
    rows = state.rows[torch.randperm(len(state.rows), generator=state.generator)[: config.batch]]
    processes, device = state.pool.processes, state.x_s.device
    part, weight = processes.rows(len(rows)), processes.weight(len(rows), config.networks)
    if config.real_view == "augmented":
        pixels = taken(data.x_train, rows, device).permute(0, 3, 1, 2).float().div(255)
        # Views are drawn for the whole batch: a process's part does not change what the others draw.
        if state.views is not None:
            view = torch.randint(config.views, (len(rows),), generator=state.generator) * len(data.x_train) + rows
            crops, known = state.views
            x_b = crop(pixels, config.crop_pad, (crops[0][view], crops[1][view], crops[2][view]))[part]
            return data.preprocessing.normalise(x_b), taken(known, view[part], device), weight
        x_b = data.preprocessing.normalise(crop_and_flip(pixels, config.crop_pad, state.generator)[part])
    else:
        x_b = data.preprocessing(taken(data.x_train, rows[part], device))
    if needs_teacher(config):
        assert teacher is not None  # check has asked for it
        with torch.no_grad():
            return x_b, teacher(x_b), weight
    return x_b, taken(representations, rows[part], device), weight


def known_views(
    data: ImageSet, config: DistillConfig, seed: int, teacher: Represent, device: torch.device,
    network: Teacher | None = None, cache: str | os.PathLike[str] | None = None, processes: Processes = ALONE,
) -> tuple[Crops, Tensor]:  # fmt: skip
    """``config.views`` crops of every training image, all images' first ones first; what the teacher says of them.

    ``network``, the teacher itself, and the folder ``cache``: from there, mapped, where a call before put them; of
    several processes one writes them there, and the others wait for it part by part, so that none is lost unnoticed.
    """
    crops = draw_crops(config.views * len(data.x_train), config.crop_pad, torch.Generator().manual_seed(seed + 2))
    views = Views(teacher, data, crops, config.crop_pad, device, network, cache)
    if views.file is not None and processes.agree(processes.writes and views.kept() is None):
        if processes.writes:
            views.keep(lambda: processes.agree(False))
        else:
            for _ in range(views.parts()):
                processes.agree(False)
        processes.wait()  # until the file has its name
    known = views.kept()  # None too where this process does not share the writer's disk
    return crops, placed(torch.cat(list(views.computed())) if known is None else known, device)


def needs_teacher(config: DistillConfig) -> bool:
    """Whether the loop itself runs the teacher, instead of reading its representations."""
    return config.real_view == "augmented" or config.teacher_in_loop == "recomputed" or config.targets == "tied"


def inputs(state: State, data: ImageSet, config: DistillConfig) -> Tensor:
    """X_s as network input: pixels normalised like a real image's, or raw."""
    return data.preprocessing.normalise(state.x_s) if config.support_input == "normalised" else state.x_s


def support(state: State, data: ImageSet, config: DistillConfig, teacher: Represent | None) -> tuple[Tensor, Tensor]:
    """X_s as network input and Y_s as the outer loss sees them, with their gradients."""
    x_s = inputs(state, data, config)
    if config.targets == "tied":
        assert teacher is not None  # check has asked for it
        y_s = teacher(data.preprocessing.normalise(state.x_s))
    else:
        y_s = state.y_s
    if config.support_view == "augmented":
        view = crop_and_flip(state.x_s, config.crop_pad, state.generator)
        x_s = data.preprocessing.normalise(view) if config.support_input == "normalised" else view
    return x_s, y_s


@torch.no_grad()
def tie(state: State, data: ImageSet, config: DistillConfig, teacher: Represent | None) -> None:
    """Bring tied targets up to date with the images."""
    if config.targets == "tied":
        assert teacher is not None
        state.y_s.copy_(teacher(data.preprocessing.normalise(state.x_s)))


def rate(step: int, config: DistillConfig) -> float:
    """AdamW's rate at an outer step: falls linearly to ``rate_floor`` of itself."""
    return config.rate * (1 - (1 - config.rate_floor) * step / max(1, config.steps))


def start(
    data: ImageSet, representations: Tensor, make: Callable[[], Network], config: DistillConfig, seed: int,
    processes: Processes = ALONE, device: torch.device = CPU,
) -> State:  # fmt: skip
    """The state before the first step: m real images with their representations, and an empty pool."""
    n = len(data.x_train)
    if config.initial == "k-means":
        rows = kmeans_medoids(representations, config.images, seed)
    else:
        rows = random_subset(n, config.images, seed)
    pixels = data.x_train[rows].permute(0, 3, 1, 2).float().div(255).contiguous()
    x_s = sent(pixels, device).requires_grad_()
    y_s = sent(representations[rows].clone(), device).requires_grad_(config.targets == "learned")
    learned = [x_s, y_s] if y_s.requires_grad else [x_s]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        learned, lr=config.rate, weight_decay=config.weight_decay, fused=True if device.type == "cuda" else None
    )  # not fused, its step counter is read on the host
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))
    kept = torch.ones(n, dtype=torch.bool)
    kept[order[~torch.isin(order, rows)][: config.held_out]] = False
    pool = Pool(make, config, generator, processes, device)
    loss_sum = torch.zeros((), device=device)
    return State(x_s, y_s, optimizer, pool, generator, rows=kept.nonzero()[:, 0], loss_sum=loss_sum)


def identity(
    data: ImageSet, representations: Tensor, make: Callable[[], Network], config: DistillConfig, seed: int
) -> dict[str, Any]:
    """Which run this is: a checkpoint of another one is refused."""
    return {
        "distill": as_dict(config), "seed": seed, "data": data.fingerprint, "network": str(make()),
        "representations": fingerprint(representations),
    }  # fmt: skip


def check(
    data: ImageSet, representations: Tensor, make: Callable[[], Network], config: DistillConfig,
    teacher: Represent | None, processes: Processes = ALONE, device: torch.device = CPU,
) -> None:  # fmt: skip
    """Raise :class:`InputError` for input that :func:`distill` refuses because it does not fit together."""
    n = len(data.x_train)
    least = config.networks if processes.way == "networks" else min(config.batch, n - config.held_out)
    if least < processes.size:
        name = "networks" if processes.way == "networks" else "batch"
        raise InputError(f"distill.{name}: expected one or more for each of {processes.size} processes, got {least}")
    if config.images > n:
        raise InputError(f"images: expected at most {n}, the training images of {data.name}, got {config.images}")
    if representations.dim() != 2 or len(representations) != n or representations.dtype != torch.float32:
        raise InputError(
            f"representations: expected float32 [{n}, C], a row a training image, got {representations.dtype} "
            f"{list(representations.shape)}"
        )
    outputs = make().head.out_features
    if outputs != representations.shape[1]:
        raise InputError(f"make: expected a network with {representations.shape[1]} outputs, got {outputs}")
    if config.images + config.held_out >= n and config.held_out:
        raise InputError(f"held_out: expected less than {n - config.images}, what images leave, got {config.held_out}")
    if needs_teacher(config) and teacher is None:
        raise InputError(
            "teacher: real_view='augmented', teacher_in_loop='recomputed' (also --official) and targets='tied' need "
            "the teacher itself; representations from a file serve the others"
        )
    if needs_teacher(config) and teacher is not None:
        came = teacher(sent(data.preprocessing(data.x_train[:2]), device)).shape
        if len(came) != 2 or came[1] != representations.shape[1]:
            raise InputError(
                f"teacher: expected {representations.shape[1]} numbers an image, as the representations have, "
                f"got {list(came)} for 2 images"
            )


def _keep_snapshot(state: State, config: DistillConfig) -> None:
    """Keep X_s at the start, at the end and at moments in between that double: most changes are early."""
    moments = {0, *(config.steps >> k for k in range(SNAPSHOTS - 1))}
    if state.step in moments and state.step not in state.snapshots:
        state.snapshots[state.step] = state.x_s.detach().clone()


def _read_out(
    state: State, data: ImageSet, representations: Tensor, config: DistillConfig, seed: int, report: Report
) -> None:
    """Measure the pairs on the held-out images by a new network, and keep them where they are the best so far."""
    x_s, y_s = inputs(state, data, config).detach(), state.y_s.detach()
    network = state.pool.outsider(seed, config.readout_steps, x_s, y_s)
    held = torch.ones(len(data.x_train), dtype=torch.bool)
    held[state.rows] = False
    rows, device = held.nonzero()[:, 0], state.x_s.device
    with torch.no_grad():
        predicted = network.head(in_chunks(frozen(network), data.preprocessing(taken(data.x_train, rows, device))))
    error = representation_error(predicted, taken(representations, rows, device))
    if state.best is None or error < state.best[0]:
        state.best = error, state.step, state.x_s.detach().clone(), y_s.clone()
    report({"event": "readout", "step": state.step, "steps": config.steps, "error": error})


def _log(state: State, data: ImageSet, config: DistillConfig, seed: int, report: Report) -> None:
    since = state.losses[-1][0] if state.losses else 0
    mean = float(state.loss_sum) / (state.step - since)
    _stop_if_diverged(state, data, config, seed)
    state.loss_sum = torch.zeros_like(state.loss_sum)
    state.good = state.x_s.detach().clone(), state.y_s.detach().clone()
    state.losses.append((state.step, mean))
    if state.step == config.steps:
        _keep_snapshot(state, config)
    report({
        "event": "distill", "step": state.step, "steps": config.steps, "loss": mean, "rate": rate(state.step, config),
        "untrained_share": state.pool.untrained_share, "mean_age": state.pool.mean_age,
    })  # fmt: skip


def _stop_if_diverged(state: State, data: ImageSet, config: DistillConfig, seed: int) -> None:
    since = state.losses[-1][0] if state.losses else 0
    mean = float(state.loss_sum) / max(1, state.step - since)
    if math.isfinite(mean) and bool(torch.isfinite(state.x_s).all()):
        return
    kept = f" the images of step {since} are kept." if state.good else ""
    raise Diverged(
        f"distill: the loss is {mean} between steps {since} and {state.step};{kept} Try a smaller "
        f"distill.rate (now {config.rate}) or a larger distill.ridge (now {config.ridge})",
        None if state.good is None else _product(state, data, config, seed, *state.good),
    )


def _product(
    state: State, data: ImageSet, config: DistillConfig, seed: int, x_s: Tensor | None = None, y_s: Tensor | None = None
) -> DistilledSet:
    losses = state.losses
    pre: Preprocessing = data.preprocessing
    return DistilledSet(
        images=(state.x_s if x_s is None else x_s).detach().to("cpu", copy=True),
        targets=(state.y_s if y_s is None else y_s).detach().to("cpu", copy=True),
        preprocessing=pre,
        method="krr-st",
        seed=seed,
        source=data.name,
        support_input=config.support_input,
        config=as_dict(config),
        versions=versions(),
        metrics={
            "steps": losses[-1][0] if losses else 0,
            "loss": losses[-1][1] if losses else None,
            "untrained_share": state.pool.untrained_share,
            "mean_age": state.pool.mean_age,
        }
        | ({} if state.best is None else {"readout": state.best[0], "readout_step": state.best[1]}),
    )
