"""What can be known before a run begins: whether its parts fit, with a teacher that is not trained yet too."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Preset
from ..data import CPU, ImageSet
from ..distill import Represent, check, needs_teacher
from ..parallel import ALONE, Processes
from ..teachers import Representations, Teacher, untrained
from .study import Study


def ready(
    data: ImageSet,
    settings: Preset,
    teacher: Teacher | None = None,
    representations: Representations | None = None,
    processes: Processes = ALONE,
    device: torch.device = CPU,
) -> None:
    """Raise the :class:`InputError` that :func:`ssdd.distill` would raise, before a teacher is trained for it.

    ``teacher`` and ``representations``: what is there; with neither, a teacher is to be trained by ``settings``.
    """
    asked: Represent | None = None
    if representations is not None:
        train = representations.train
        asked = teacher.fed(data.preprocessing) if teacher is not None else None
    elif teacher is not None:
        train = _stand_in(data, teacher.represent(data.x_train[:2]).shape[1])
        asked = teacher.fed(data.preprocessing)
    else:
        dimension = untrained(data, settings.teacher).dimension
        train = _stand_in(data, dimension)
        asked = lambda x: x.new_zeros(len(x), dimension)  # noqa: E731 (as the trained one will answer)
    study = Study(data, Representations(train, None), settings)
    check(
        data, train, lambda: study.make(train.shape[1]), settings.distill,
        asked if needs_teacher(settings.distill) else None, processes, device,
    )  # fmt: skip


def _stand_in(data: ImageSet, dimension: int) -> Tensor:
    """The shape of the representations, in no memory."""
    return torch.zeros(1, 1).expand(len(data.x_train), dimension)
