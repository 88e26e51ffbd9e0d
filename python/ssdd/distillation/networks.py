"""Where the networks of a method come from, if not from the pool that trains on the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..config import Report, silent
from ..data import to_device
from ..models import Network
from .job import Job
from .pool import Member, Pool


class Untrained(Pool):
    """Networks that no step trains and no checkpoint needs: new random ones at every draw.

    ``count`` (default: ``config.networks``) are drawn.
    """

    def __init__(self, job: Job, generator: torch.Generator, count: int | None = None) -> None:
        super().__init__(job, generator)
        self.count = job.config.networks if count is None else count

    @property
    def full(self) -> bool:
        return True

    def fill(
        self,
        x_s: Tensor,
        y_s: Tensor,
        report: Report = silent,
        after: Callable[[], None] = lambda: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Do nothing: there is no network to create before the first step."""

    def draw(self) -> list[Member]:
        """Create ``count`` new networks."""
        seeds = [int(torch.randint(0, 2**62, (), generator=self.generator)) for _ in range(self.count)]
        drawn = self._create(seeds)
        self._count(drawn)
        return drawn

    def _create(self, seeds: Sequence[int]) -> list[Member]:
        """Return one new network per seed."""
        return [self._start(seed) for seed in seeds]

    def advance(self, drawn: Sequence[Member], x_s: Tensor, y_s: Tensor) -> None:
        """Do nothing: networks are dropped after their step."""


class Normal(Untrained):
    """Untrained networks with weights of variance 2 / inputs and biases of standard deviation 0.1, all normal.

    That is how the NNGP kernel has them. It holds for convolutions and linear layers; other layers start as
    ``job.make`` has them. A network without other random layers is made once, and each draw gives it new weights.
    """

    def __init__(self, job: Job, generator: torch.Generator, count: int) -> None:
        super().__init__(job, generator, count)
        self.made: list[Member] = []
        """The networks that each draw gives new weights."""

    def _create(self, seeds: Sequence[int]) -> list[Member]:
        drawn = self.made or super()._create(seeds)
        for member, seed in zip(drawn, seeds, strict=True):
            renew(member.network, torch.Generator().manual_seed(seed))
        if not self.made and all(_is_renewed(member.network) for member in drawn):
            self.made = drawn
        return drawn


def _is_renewed(network: Network) -> bool:
    """Return True if :func:`renew` sets all that is random at the start of ``network``."""
    fixed = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    return all(isinstance(m, fixed) or not (m._parameters or m._buffers) for m in network.modules())


@torch.no_grad()
def renew(network: Network, generator: torch.Generator) -> None:
    """Give the convolutions and linear layers of ``network`` new normal weights and biases. ``generator``: in main
    memory, so that a seed gives the same weights on any device."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spread = (2 / layer.weight[0].numel()) ** 0.5
            _set(layer.weight, spread * torch.randn(layer.weight.shape, generator=generator))
            if layer.bias is not None:
                _set(layer.bias, 0.1 * torch.randn(layer.bias.shape, generator=generator))


def _set(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(to_device(values, parameter.device))


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
