"""Real batches: training images drawn at random, as network input, with their targets."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..data import Crops, crop, crop_and_flip, draw_crops, gather, keep_on_device
from ..teachers import Teacher, Views
from .job import Job
from .methods import Method


class Batches:
    """Draws the real batches of a job. Nothing here changes during the run.

    ``initial``: the training images that X_s starts from; no held-out image is one of them. ``views``: crops of every
    image with their representations (:func:`represent_views`). Images stay uint8, on ``job.device`` if they fit there.
    """

    def __init__(self, method: Method, initial: Tensor, views: tuple[Crops, Tensor] | None = None) -> None:
        job = method.job
        self.method, self.job, self.views = method, job, views
        self.data, self.targets = job.data.on(job.device), keep_on_device(method.targets, job.device)
        self.rows, self.held_out = split(job, initial)
        self.groups = method.groups(self.rows)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """Draw Q different training images: X_b as network input [Q, C, H, W], targets Y_b [Q, C], and their weight.

        If several processes share the run, each gets its part, with the part's weight in the mean over the whole batch.
        """
        config, processes, device = self.job.config, self.job.processes, self.job.device
        data, represent, method = self.data, self.job.represent, self.method
        share = max(1, config.batch // len(self.groups))
        drawn = [group[torch.randperm(len(group), generator=generator)[:share]] for group in self.groups]
        rows = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
        part, weight = processes.rows(len(rows)), processes.weight(len(rows), config.networks)
        if config.real_view == "augmented":
            pixels = gather(data.x_train, rows, device).permute(0, 3, 1, 2).float().div(255)
            # Views are drawn for the whole batch: a process's part does not change what the others draw.
            if self.views is not None:
                view = torch.randint(config.views, (len(rows),), generator=generator) * len(data.x_train) + rows
                crops, known = self.views
                x_b = crop(pixels, config.crop_pad, (crops[0][view], crops[1][view], crops[2][view]))[part]
                known_b = method.targets_from(gather(known, view[part], device))
                return data.preprocessing.normalise(x_b), known_b, weight
            x_b = data.preprocessing.normalise(crop_and_flip(pixels, config.crop_pad, generator)[part])
        else:
            x_b = data.preprocessing(gather(data.x_train, rows[part], device))
        if not config.batches_need_teacher:
            return x_b, gather(self.targets, rows[part], device), weight
        assert represent is not None  # check refuses a job without it
        with torch.no_grad():
            return x_b, method.targets_from(represent(x_b)), weight

    def held_out_images(self) -> tuple[Tensor, Tensor]:
        """Return the held-out training images as network input, and their targets."""
        x = self.data.preprocessing(gather(self.data.x_train, self.held_out, self.job.device))
        return x, gather(self.targets, self.held_out, self.job.device)


def split(job: Job, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows that batches are drawn from, and the held-out rows. No row of ``initial`` is held out."""
    order = torch.randperm(len(job.data.x_train), generator=torch.Generator().manual_seed(job.seed + 1))
    used = torch.ones(len(order), dtype=torch.bool)
    used[order[~torch.isin(order, initial)][: job.config.held_out]] = False
    return used.nonzero()[:, 0], (~used).nonzero()[:, 0]


def represent_views(job: Job, cache: str | os.PathLike[str] | None = None) -> tuple[Crops, Tensor]:
    """Return ``config.views`` crops of every training image and their representations, the first view of all images
    first.

    ``cache`` keeps what a :class:`Teacher` computes; an existing file there is mapped. If several processes share the
    run, one of them writes the file. The others call ``agree`` once per part meanwhile, which raises if a process is
    lost.
    """
    config, processes = job.config, job.processes
    assert job.represent is not None  # check refuses a job without it
    network = job.teacher if isinstance(job.teacher, Teacher) else None
    draws = torch.Generator().manual_seed(job.seed + 2)
    crops = draw_crops(config.views * len(job.data.x_train), config.crop_pad, draws)
    data = job.data.on(job.device)
    views = Views(job.represent, data, crops, config.crop_pad, job.device, network, cache)
    known: Tensor | None = None
    if views.file is not None and processes.agree(processes.writes and views.read() is None):
        if processes.writes:
            known = views.write(lambda: processes.agree(False))
        else:
            for _ in range(views.parts()):
                processes.agree(False)
        processes.wait()  # the file has its final name
    if known is None:
        known = views.read()  # None also if this process does not share the writer's disk
    return crops, keep_on_device(torch.cat(list(views.compute())) if known is None else known, job.device)
