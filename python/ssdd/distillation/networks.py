"""Where the networks of a method come from, if not from the pool that trains on the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..config import Report, silent
from .pool import Member, Pool


class Fresh(Pool):
    """New random networks at every draw; none is trained, and none is kept."""

    @property
    def full(self) -> bool:
        return True

    def fill(self, x_s: Tensor, y_s: Tensor, report: Report = silent, after: Callable[[], None] = lambda: None) -> None:
        """Nothing to start before the first step."""

    def draw(self) -> list[Member]:
        """``networks`` new ones."""
        drawn = [self._new() for _ in range(self.config.networks)]
        self._count(drawn)
        return drawn

    def advance(self, drawn: Sequence[Member], x_s: Tensor, y_s: Tensor) -> None:
        """Networks drawn are dropped."""
