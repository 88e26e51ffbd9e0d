"""The pool of networks whose features the outer loss uses: each has random initial weights and its own training age.

Section 3.3 of the paper: there are L networks. Network l starts at random and is trained t_l ~ U{1..T-1} steps on (X_s,
Y_s). Each outer step draws one, and trains it by one step afterwards. A network that has made T steps is replaced by a
new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Report, silent
from ..data import module_to_device
from ..models import Network, seeded
from .job import Job


@dataclass
class Member:
    """One network of the pool. ``age``: its training steps so far. ``counter``: replacement happens when it reaches T.

    The two differ only with ``pool_counter="stuck"``, which gives a new network its predecessor's counter.
    """

    network: Network
    optimizer: torch.optim.SGD
    age: int
    counter: int


class Pool:
    """The networks of ``job``: ``job.make`` creates them in main memory, and they train on ``job.device``.

    Every draw comes from ``generator``, which is also in main memory, so a pool can be resumed on any device.
    """

    def __init__(self, job: Job, generator: torch.Generator) -> None:
        self.processes, self.device = job.processes, job.device
        self.make, self.config, self.generator = job.make, job.config, generator
        self.members: list[Member] = []
        self.drawn = self.untrained = self.ages = 0

    @property
    def full(self) -> bool:
        """True if nothing is left for :meth:`fill`."""
        return len(self.members) == self.config.pool

    def _new(self) -> Member:
        return self._start(int(torch.randint(0, 2**62, (), generator=self.generator)))

    def _start(self, seed: int, make: Callable[[], Network] | None = None) -> Member:
        network = seeded(make or self.make, seed)  # in main memory: the same weights on every device
        module_to_device(network, self.device)
        c = self.config
        optimizer = torch.optim.SGD(
            network.parameters(), lr=c.pool_lr, momentum=c.pool_momentum, weight_decay=c.pool_weight_decay
        )
        return Member(network, optimizer, age=0, counter=0)

    def fill(self, x_s: Tensor, y_s: Tensor, report: Report = silent, after: Callable[[], None] = lambda: None) -> None:
        """Create networks until there are L, and train each by its own random number of steps.

        x_s: network input [S, C, H, W]; y_s: [S, C]. Reports ``{"event": "pool", "step", "steps"}`` and calls ``after``
        once per network. At that moment the pool can be written and resumed.
        """
        while len(self.members) < self.config.pool:
            new = []
            for i in range(min(self.processes.size, self.config.pool - len(self.members))):
                member = self._new()
                steps = int(torch.randint(1, self.config.pool_steps, (), generator=self.generator))
                for _ in range(steps if self.processes.owner(i) == self.processes.rank else 0):
                    self._train(member, x_s, y_s)
                member.age = member.counter = steps
                new.append(member)
            for i, member in enumerate(new):
                self.processes.broadcast(self._tensors(member), self.processes.owner(i))
            self.members += new
            report({"event": "pool", "step": len(self.members), "steps": self.config.pool})
            after()

    def draw(self) -> list[Member]:
        """Draw ``networks`` different members with equal probability, in eval mode (BatchNorm as after training)."""
        count, size = self.config.networks, len(self.members)
        if count == 1:
            chosen = torch.randint(0, size, (1,), generator=self.generator)
        else:
            chosen = torch.randperm(size, generator=self.generator)[:count]
        drawn = [self.members[i] for i in chosen.tolist()]
        for member in drawn:
            member.network.eval()
        self._count(drawn)
        return drawn

    def _count(self, drawn: Sequence[Member]) -> None:
        self.drawn += len(drawn)
        self.untrained += sum(member.age == 0 for member in drawn)
        self.ages += sum(member.age for member in drawn)

    def advance(self, drawn: Sequence[Member], x_s: Tensor, y_s: Tensor) -> None:
        """Train each network drawn by one step, or replace it after T steps (step 4 of the algorithm)."""
        for i, member in enumerate(drawn):
            if member.counter < self.config.pool_steps:
                if self.processes.owner(i) == self.processes.rank:
                    self._train(member, x_s, y_s)
                member.age += 1
                member.counter += 1
                if member.counter < self.config.pool_steps or self.config.pool_counter == "stuck":
                    continue
            new = self._new()
            if self.config.pool_counter == "stuck":
                new.counter = member.counter
            self.members[self.members.index(member)] = new
        for i, member in enumerate(drawn):  # after all are trained: the processes train at the same time
            if member in self.members:
                self.processes.broadcast(self._tensors(member), self.processes.owner(i))

    def _tensors(self, member: Member) -> list[Tensor]:
        """Return all tensors that training changes in a network: weights, statistics, and momentum (zeros before the
        first step)."""
        if self.processes.size == 1:
            return []
        tensors = list(member.network.state_dict().values())
        for weight in member.network.parameters() if self.config.pool_momentum else []:
            state = member.optimizer.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)
            tensors.append(state["momentum_buffer"])
        return tensors

    def outsider(self, seed: int, steps: int, x_s: Tensor, y_s: Tensor) -> Network:
        """Return a new network that is no member, created from ``seed`` and trained like one, in eval mode. Draws
        nothing."""
        member = self._start(seed)
        for _ in range(steps):
            self._train(member, x_s, y_s)
        return member.network.eval()

    def _train(self, member: Member, x_s: Tensor, y_s: Tensor) -> None:
        member.network.train()
        loss = F.mse_loss(member.network(x_s), y_s)
        member.optimizer.zero_grad()
        loss.backward()
        member.optimizer.step()

    @property
    def untrained_share(self) -> float:
        """Share of the draws so far that gave a network without a single training step."""
        return self.untrained / max(1, self.drawn)

    @property
    def mean_age(self) -> float:
        """Mean number of training steps of the networks drawn so far."""
        return self.ages / max(1, self.drawn)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed pool needs, except the generator's state, which the outer loop stores."""
        return {
            "members": [
                {
                    "network": m.network.state_dict(),
                    "optimizer": m.optimizer.state_dict(),
                    "age": m.age,
                    "counter": m.counter,
                }
                for m in self.members
            ],
            "drawn": self.drawn,
            "untrained": self.untrained,
            "ages": self.ages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. The generator must be restored after this call."""
        self.members = []
        for saved in state["members"]:
            member = self._new()
            member.network.load_state_dict(saved["network"])
            member.optimizer.load_state_dict(saved["optimizer"])
            member.age, member.counter = saved["age"], saved["counter"]
            self.members.append(member)
        self.drawn, self.untrained, self.ages = state["drawn"], state["untrained"], state["ages"]
