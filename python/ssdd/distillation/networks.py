"""Where the networks of a method come from, if not from the pool that trains on the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config import Report, silent
from ..models import Network
from .job import Job
from .pool import Member, Pool


class Untrained(Pool):
    """Networks that no step trains and no checkpoint needs: new random ones at every draw.

    ``count`` (default: ``config.networks``) are drawn. ``make`` starts them (default: ``job.make``).
    """

    def __init__(
        self,
        job: Job,
        generator: torch.Generator,
        count: int | None = None,
        make: Callable[[], Network] | None = None,
    ) -> None:
        super().__init__(job, generator)
        self.count, self.start = job.config.networks if count is None else count, make

    @property
    def full(self) -> bool:
        return True

    def fill(self, x_s: Tensor, y_s: Tensor, report: Report = silent, after: Callable[[], None] = lambda: None) -> None:
        """Do nothing: there is no network to create before the first step."""

    def draw(self) -> list[Member]:
        """Create ``count`` new networks."""
        seeds = [int(torch.randint(0, 2**62, (), generator=self.generator)) for _ in range(self.count)]
        drawn = [self._start(seed, self.start) for seed in seeds]
        self._count(drawn)
        return drawn

    def advance(self, drawn: Sequence[Member], x_s: Tensor, y_s: Tensor) -> None:
        """Do nothing: networks are dropped after their step."""


class Fixed(Untrained):
    """One network whose features are ``features`` (images [N, C, H, W] -> [N, D]), at every draw."""

    def __init__(self, job: Job, generator: torch.Generator, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__(job, generator, count=1)
        network = Network(_Features(features), 1, 1)  # its last layer is not used
        self.member = Member(network, torch.optim.SGD(network.parameters()), age=0, counter=0)

    def draw(self) -> list[Member]:
        return [self.member]


class _Features(nn.Module):
    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.held = (features,)  # not a submodule: its weights are constants

    def forward(self, x: Tensor) -> Tensor:
        return self.held[0](x)
