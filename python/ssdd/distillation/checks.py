"""Checks before a run begins: whether its parts fit together, even if the teacher is not trained yet."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor

from ..artifact import check_transforms
from ..config import DistillConfig, InputError, Settings
from ..data import CPU, ImageSet, to_device
from ..models import student
from ..parallel import ALONE, Processes
from ..teachers import Represent, Representations, Teacher, new_backbone
from .job import Job
from .methods import METHODS
from .storage import image_count


def check(job: Job) -> None:
    """Raise :class:`InputError` if the parts of ``job`` do not fit together; :func:`distill` calls it first."""
    data, config, processes, representations = job.data, job.config, job.processes, job.representations
    method = METHODS[config.method]
    method.check(config, data)
    if processes.size > 1 and processes.mode not in method.shares:
        raise InputError(
            f"share: expected {' or '.join(method.shares)} for the method {config.method!r}, got {processes.mode!r}"
        )
    n = len(data.x_train)
    least = config.networks if processes.mode == "networks" else min(config.batch, n - config.held_out)
    if least < processes.size:
        name = "networks" if processes.mode == "networks" else "batch"
        raise InputError(f"distill.{name}: expected one or more for each of {processes.size} processes, got {least}")
    if representations is None and method.needs_representations(config):
        raise InputError("representations: expected the teacher's, one row per training image, got None")
    if representations is not None and (
        representations.dim() != 2 or len(representations) != n or representations.dtype != torch.float32
    ):
        raise InputError(
            f"representations: expected float32 [{n}, C], one row per training image, got {representations.dtype} "
            f"{list(representations.shape)}"
        )
    outputs = job.make().head.out_features
    expected = method.outputs(config, data, None if representations is None else representations.shape[1])
    if outputs != expected:
        raise InputError(f"make: expected a network with {expected} outputs, got {outputs}")
    count = image_count(config, data, expected)
    if count > n:
        what = f"{count}, as many as {config.budget:,} bytes hold" if config.budget else f"{count}"
        raise InputError(f"images: expected at most {n}, the training images of {data.name}, got {what}")
    if count + config.held_out >= n and config.held_out:
        raise InputError(f"held_out: expected less than {n - count}, the rows besides images, got {config.held_out}")
    check_transforms(config.transforms, data.size)
    if not method.needs_teacher(config):
        return
    if job.represent is None:
        raise InputError(
            "teacher: real_view='augmented', teacher_in_loop='recomputed' (also --official), targets='tied', "
            "transforms and the method 'clp-dd' need the teacher itself; representations from a file serve the others"
        )
    if representations is not None:
        came = job.represent(to_device(data.preprocessing(data.x_train[:2]), job.device)).shape
        if len(came) != 2 or came[1] != representations.shape[1]:
            raise InputError(
                f"teacher: expected {representations.shape[1]} numbers per image, as the representations have, "
                f"got {list(came)} for 2 images"
            )


def check_before_training(
    data: ImageSet,
    settings: Settings,
    teacher: Teacher | None = None,
    representations: Representations | None = None,
    processes: Processes = ALONE,
    device: torch.device = CPU,
) -> None:
    """Raise the :class:`InputError` that :func:`distill` would raise, before a teacher is trained for it.

    Args:
        data: the images to distil.
        settings: the settings of the run.
        teacher: the teacher, if there is one. Default: one is to be trained by ``settings.teacher``.
        representations: the teacher's representations, if they are known. Default: they are not.
        processes: the processes that share the run. Default: one.
        device: the device of the run. Default: the CPU.
    """
    method, represent = METHODS[settings.distill.method], cast(Represent | None, teacher)
    method.check(settings.distill, data)
    train: Tensor | None = None
    if not method.needs_representations(settings.distill):
        represent = None
    elif representations is not None:
        train = representations.train
    elif teacher is not None:
        train = _stand_in(data, teacher.represent(data.x_train[:2]).shape[1])
    else:
        dimension = new_backbone(data, settings.teacher).dimension
        train = _stand_in(data, dimension)
        represent = lambda x: x.new_zeros(len(x), dimension)  # noqa: E731 (the trained teacher returns the same shape)
    outputs = method.outputs(settings.distill, data, None if train is None else train.shape[1])
    make = partial(student, settings.student, data.channels, data.size, outputs)
    needed = represent if method.needs_teacher(settings.distill) else None
    check(Job(data, train, make, settings.distill, teacher=needed, processes=processes, device=device))


def needs_teacher(config: DistillConfig) -> bool:
    """True if a run with these settings needs a teacher or its representations; labels need neither."""
    method = METHODS[config.method]
    return method.needs_representations(config) or method.needs_teacher(config)


def target_size(config: DistillConfig, data: ImageSet, dimension: int | None) -> int:
    """Numbers in a target, which are the outputs of the network to distil for.

    ``dimension``: numbers in a representation of the teacher; None if :func:`needs_teacher` says that none is needed.
    """
    METHODS[config.method].check(config, data)
    return METHODS[config.method].outputs(config, data, dimension)


def _stand_in(data: ImageSet, dimension: int) -> Tensor:
    """Return a tensor of the representations' shape that takes no memory."""
    return torch.zeros(1, 1).expand(len(data.x_train), dimension)
