"""The job: everything about one distillation that stays the same while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import DistillConfig
from ..data import CPU, ImageSet
from ..models import Network
from ..parallel import ALONE, Processes
from ..teachers import Represent, Teacher


@dataclass(frozen=True, eq=False)
class Job:
    """What to distil, for which network, and how. The same job on the same machine and threads gives the same bits."""

    data: ImageSet
    """The training images X_t, and held-out images."""
    representations: Tensor | None
    """g(X_t), the teacher's representations, float32 [N, D], one row per training image; None if the method needs
    none."""
    make: Callable[[], Network]
    """Returns the network to distil for, with new random weights and as many outputs as a target has numbers
    (:func:`target_size`)."""
    config: DistillConfig
    """The settings of the distillation."""
    seed: int = 0
    """Seed of the initial subset and of every later draw."""
    teacher: Represent | None = None
    """A :class:`Teacher`, or any callable from normalised images to representations; required only if
    :meth:`Method.needs_teacher`."""
    processes: Processes = ALONE
    """The processes that share the run (:func:`ssdd.join_processes`). Each begins the same job and gets the same
    result."""
    device: torch.device = CPU
    """The device of the loop. Every random draw is made in main memory, so a seed draws the same on any device."""

    @property
    def represent(self) -> Represent | None:
        """The teacher as a function of images with the normalisation of ``data``."""
        return self.teacher.accepting(self.data.preprocessing) if isinstance(self.teacher, Teacher) else self.teacher
