"""When a run writes a checkpoint and when it stops. All processes of a run get the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..checkpoint import Checkpoints
from .job import Job

STOP_CHECK_EVERY = 16
"""On a GPU, reading the shared stop flag synchronises, so it is read every 16 steps."""


class Stop:
    """Decides, for all processes of ``job`` at once, whether the run stops. Without ``checkpoints`` it never does."""

    def __init__(self, job: Job, checkpoints: Checkpoints | None = None) -> None:
        self.processes, self.checkpoints = job.processes, checkpoints
        self.every = 1 if job.device.type == "cpu" else STOP_CHECK_EVERY
        self.requested = False
        """True once any process got a request to stop."""

    def combine(self, step: int, loss: Tensor, gradients: Sequence[Tensor], weight: float) -> Tensor:
        """Return the loss over all processes, make ``gradients`` their sums in place, and exchange the requests to
        stop."""
        read = (step + 1) % self.every == 0
        total, self.requested = self.processes.combine(loss, gradients, weight, self._stop_requested(), read)
        return total

    def ask(self) -> None:
        """Exchange the requests to stop between two steps."""
        self.requested = self.processes.agree(self._stop_requested())

    def due(self, last: bool) -> bool:
        """Return True if :meth:`save` must be called now: at the interval, before a stop, and at the ``last``
        moment."""
        return self.checkpoints is not None and (self.requested or self.checkpoints.due() or last)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint. Raises :class:`Stopped` after a request to stop."""
        if self.checkpoints is not None:
            self.checkpoints.save(step, state, self.requested)

    def _stop_requested(self) -> bool:
        return self.checkpoints is not None and self.checkpoints.stop()
