"""The outer loop (algorithm 1 of the paper), the same for every method, and its result."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..artifact import DistilledSet, transformed
from ..checkpoint import Checkpoints, fingerprint
from ..config import DistillConfig, Diverged, Pulse, Report, as_dict, deprecations, in_float32, silent, versions
from ..data import crop_and_flip, repeatable
from ..models import frozen, in_chunks, representation_error, why_slow
from .batches import Batches, represent_views
from .checks import check
from .job import Job
from .methods import Step, method_of
from .objective import realism
from .pool import Interrupted
from .state import State, start
from .stop import Stop
from .storage import describe

SNAPSHOTS = 6
"""Number of moments of the run whose images are kept for the picture "distilled images over the steps"."""


@dataclass(frozen=True)
class Distillation:
    """The result of a run: the distilled set, the loss curve, and the images at some of its steps."""

    result: DistilledSet
    """The distilled images with their target representations."""
    losses: list[tuple[int, float]]
    """(outer step, mean outer loss since the previous entry)."""
    snapshots: dict[int, Tensor]
    """Outer step -> X_s at that step, float32 [S, C, H, W] in pixels."""


@repeatable()
@in_float32
def distill(
    job: Job,
    *,
    report: Report = silent,
    checkpoints: Checkpoints | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Distillation:
    """Distil ``job.data`` into ``job.config.images`` pairs of image and target, by the method ``job.config.method``.

    Args:
        job: what to distil, for which network, and how.
        report: receives ``{"event": "distill", "step", "steps", "loss", "lr", "untrained_share", "mean_age"}`` every
            ``config.log_every`` steps, and ``{"event": "warning", "message"}`` per deprecated setting and if this
            processor has no bf16 and ``job.make`` asks for it. Default: nothing is reported.
        checkpoints: the run goes on from the newest one, to the same bits as if it had never stopped, and raises
            :class:`Stopped` on a request to stop. Default: none are read or written.
        cache: the folder that keeps what a :class:`Teacher` computes of known views (``config.views``). Default: none.

    Raises:
        InputError: for input that does not fit together.
        Diverged: if the loss is no longer finite; ``partial`` is the last good :class:`DistilledSet`.
        ProcessLost: if another of ``job.processes`` has ended.
        Stopped: after a request to stop, with a checkpoint written.
    """
    check(job)
    for message in deprecations(job.config):
        warnings.warn(message, DeprecationWarning, stacklevel=4)  # of the caller, behind two decorators
        report({"event": "warning", "message": message})
    if why := why_slow(job.make().half_training, job.device):
        report({"event": "warning", "message": why})
    state, batches = begin(job)
    saved = checkpoints.begin(identity(job), ("distill.steps", job.config.steps)) if checkpoints else None
    if job.config.views:
        with checkpoints.without_steps() if checkpoints else nullcontext():
            batches.views = represent_views(job, cache)
    if saved is not None:
        state.load_state_dict(saved)
    job.processes.wait()  # every process reads the newest checkpoint before one writes the next
    stop = Stop(job, checkpoints)

    def after_network() -> None:
        stop.ask()
        if stop.due(last=state.pool.full):
            stop.save(0, state.state_dict())

    def interrupted() -> bool:
        stop.ask()
        return stop.requested

    state.pool.fill(inputs(job, state).detach(), state.y_s.detach(), report, after_network, interrupted)
    run(job, state, batches, report=report, stop=stop)
    snapshots = {step: x.cpu() for step, x in state.snapshots.items()}
    values = state.values() if state.best is None else state.best[2:]
    return Distillation(product(job, state, values), state.losses, snapshots)


def begin(job: Job) -> tuple[State, Batches]:
    """Return the state before the first step, and the real batches of the run."""
    method = method_of(job)
    rows = method.initial_rows()
    return start(method, rows), Batches(method, rows)


def run(
    job: Job,
    state: State,
    batches: Batches,
    *,
    report: Report = silent,
    until: int | None = None,
    stop: Stop | None = None,
) -> None:
    """Run the outer loop from ``state.step`` to ``until`` (default: the end). Only ``state`` changes."""
    method, config, processes, stop = method_of(job), job.config, job.processes, stop or Stop(job)
    learned = [x for group in state.optimizer.param_groups for x in group["params"]]
    pulse = Pulse(report, "distill", config.steps)
    while state.step < (config.steps if until is None else until):
        pulse(state.step)
        _keep_snapshot(job, state)
        try:
            drawn = state.pool.draw()
        except Interrupted:
            stop.save(state.step, state.state_dict())
            raise AssertionError("save raises Stopped after a request to stop") from None
        x_b, y_b, weight = batches.draw(state.generator)
        x_s, y_s = support(job, state)
        networks = [member.network for member in processes.networks(drawn)]
        loss = method.loss(Step(networks, x_s, y_s, x_b, y_b, state.learned, state.generator))
        if config.tv_weight or config.init_weight:
            loss = loss + realism(state.x_s, state.snapshots[0], config)
        state.optimizer.zero_grad()
        loss.backward()
        total = stop.combine(state.step, loss.detach(), [x.grad for x in learned], weight)
        for group in state.optimizer.param_groups:
            group["lr"] = decay_lr(state.step, config) * group["times"]
        state.optimizer.step()
        tie(job, state)
        state.pool.advance(drawn, inputs(job, state).detach(), state.y_s.detach())
        state.step += 1
        state.loss_sum += total
        if state.step % config.log_every == 0 or state.step == config.steps:
            _log(job, state, report)
        if config.readout_every and (state.step % config.readout_every == 0 or state.step == config.steps):
            _read_out(job, state, batches, report)
        if stop.due(last=state.step == config.steps):
            _stop_if_diverged(job, state)  # a diverged state must not replace a good one
            stop.save(state.step, state.state_dict())


def inputs(job: Job, state: State) -> Tensor:
    """Return X_s and its transforms as network input [T S, C, H, W]: normalised like a real image, or raw pixels."""
    x_s = transformed(job.config.transforms, state.x_s)
    return x_s if job.config.support_input == "raw" else job.data.preprocessing.normalise(x_s)


def support(job: Job, state: State) -> tuple[Tensor, Tensor]:
    """Return X_s as network input and Y_s as the outer loss sees them, with their gradients."""
    config, normalise = job.config, job.data.preprocessing.normalise
    x_s, y_s = inputs(job, state), state.y_s
    if config.targets == "tied":
        assert job.represent is not None  # check refuses a job without it
        y_s = method_of(job).targets_from(job.represent(normalise(transformed(config.transforms, state.x_s))))
    if config.support_view == "augmented":
        view = transformed(config.transforms, crop_and_flip(state.x_s, config.crop_pad, state.generator))
        x_s = view if config.support_input == "raw" else normalise(view)
    return x_s, y_s


@torch.no_grad()
def tie(job: Job, state: State) -> None:
    """Update tied targets to the teacher's representations of the current images."""
    if job.config.targets == "tied":
        assert job.represent is not None  # check refuses a job without it
        pixels = transformed(job.config.transforms, state.x_s)
        representations = job.represent(job.data.preprocessing.normalise(pixels))
        state.y_s.copy_(method_of(job).targets_from(representations))


def decay_lr(step: int, config: DistillConfig) -> float:
    """Return AdamW's learning rate at an outer step: it falls linearly to the fraction ``lr_floor`` of itself."""
    return config.lr * (1 - (1 - config.lr_floor) * step / max(1, config.steps))


def identity(job: Job) -> dict[str, Any]:
    """Return the values that identify this run. A checkpoint with other values is refused."""
    method = method_of(job)
    known = {} if job.representations is None else {"representations": fingerprint(job.representations)}
    labels = {} if method.target_kind == "representation" else {"targets": fingerprint(method.targets)}
    return {
        "distill": as_dict(job.config),
        "seed": job.seed,
        "data": job.data.fingerprint,
        "network": str(job.make()),
        **known,
        **labels,
    }


def product(job: Job, state: State, values: Sequence[Tensor]) -> DistilledSet:
    """Return the distilled set that ``values`` of the storage stand for, with all that is needed to use it."""
    storage = state.storage.holding(values)
    return DistilledSet(
        images=transformed(job.config.transforms, storage.images()).to("cpu", copy=True),
        targets=storage.targets().to("cpu", copy=True),
        preprocessing=job.data.preprocessing,
        method=job.config.method,
        seed=job.seed,
        source=job.data.name,
        support_input=job.config.support_input,
        target_kind=method_of(job).target_kind,
        config=as_dict(job.config),
        versions=versions(),
        metrics={
            "steps": state.losses[-1][0] if state.losses else 0,
            "loss": state.losses[-1][1] if state.losses else None,
            "untrained_share": state.pool.untrained_share,
            "mean_age": state.pool.mean_age,
        }
        | ({} if state.best is None else {"readout": state.best[0], "readout_step": state.best[1]}),
        storage=describe(storage, job.config),
        stored={name: value.to("cpu", copy=True) for name, value in storage.tensors().items()},
    )


def _keep_snapshot(job: Job, state: State) -> None:
    """Keep X_s at the start, at the end, and at moments between them that double, as most changes are early."""
    moments = {0, *(job.config.steps >> k for k in range(SNAPSHOTS - 1))}
    if state.step in moments and state.step not in state.snapshots:
        state.snapshots[state.step] = state.x_s.detach().clone()


def _read_out(job: Job, state: State, batches: Batches, report: Report) -> None:
    """Measure the error of a new network, trained on the pairs, on the held-out images; keep the pairs if it is the
    lowest."""
    x_s, y_s = inputs(job, state).detach(), state.y_s.detach()
    network = state.pool.outsider(job.seed, job.config.readout_steps, x_s, y_s)
    x, y = batches.held_out_images()
    with torch.no_grad():
        predicted = network.head(in_chunks(frozen(network), x))
    error = representation_error(predicted, y)
    if state.best is None or error < state.best[0]:
        state.best = error, state.step, *state.values()
    report({"event": "readout", "step": state.step, "steps": job.config.steps, "error": error})


def _log(job: Job, state: State, report: Report) -> None:
    since = state.losses[-1][0] if state.losses else 0
    mean = float(state.loss_sum) / (state.step - since)
    _stop_if_diverged(job, state)
    state.loss_sum = torch.zeros_like(state.loss_sum)
    state.good = state.values()
    state.losses.append((state.step, mean))
    if state.step == job.config.steps:
        _keep_snapshot(job, state)
    report(
        {
            "event": "distill",
            "step": state.step,
            "steps": job.config.steps,
            "loss": mean,
            "lr": decay_lr(state.step, job.config),
            "untrained_share": state.pool.untrained_share,
            "mean_age": state.pool.mean_age,
        }
    )


def _stop_if_diverged(job: Job, state: State) -> None:
    since = state.losses[-1][0] if state.losses else 0
    mean = float(state.loss_sum) / max(1, state.step - since)
    if math.isfinite(mean) and bool(torch.isfinite(state.x_s).all()):
        return
    kept = f" the images of step {since} are kept." if state.good else ""
    ridge = method_of(job).ridge
    larger = f" or a larger distill.{ridge} (now {attrgetter(ridge)(job.config)})" if ridge else ""
    raise Diverged(
        f"distill: the loss is {mean} between steps {since} and {state.step};{kept} Try a smaller "
        f"distill.lr (now {job.config.lr}){larger}",
        None if state.good is None else product(job, state, state.good),
    )
