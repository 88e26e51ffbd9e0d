"""What one distillation is asked to do: everything that stays the same while it runs."""

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


@dataclass(frozen=True)
class Job:
    """What to distil, for which network, and how. The same job on the same machine and threads gives the same bits."""

    data: ImageSet
    representations: Tensor | None
    """g(X_t), float32 [N, D], one row per training image; None if the method needs none (labels)."""
    make: Callable[[], Network]
    """Returns the network to distil for, with a new random start and as many outputs as a target has numbers
    (:func:`target_size`)."""
    config: DistillConfig
    seed: int = 0
    """Fixes the initial subset and every later draw."""
    teacher: Represent | None = None
    """A :class:`Teacher` or any callable; see :meth:`Method.needs_teacher`."""
    processes: Processes = ALONE
    """Those that share the run (:func:`ssdd.join_processes`); each begins the same job and gets the same result."""
    device: torch.device = CPU
    """The loop runs there. Every draw is made in main memory, so a seed draws the same on any device."""

    @property
    def represent(self) -> Represent | None:
        """The teacher as a function of images that are normalised as the data are."""
        return self.teacher.accepting(self.data.preprocessing) if isinstance(self.teacher, Teacher) else self.teacher
