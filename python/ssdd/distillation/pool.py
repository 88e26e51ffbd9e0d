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

from ..config import Pulse, Report, silent
from ..data import module_to_device
from ..models import Network, seeded
from .job import Job


class Interrupted(Exception):
    """A drawn network was not trained to its age, as somebody asked the run to stop."""


@dataclass
class Member:
    """One network of the pool. ``age``: its training steps so far. ``counter``: replacement happens when it reaches T.

    The two differ only with ``pool_counter="stuck"``, which gives a new network its predecessor's counter.
    """

    network: Network
    optimizer: torch.optim.SGD
    age: int
    counter: int
    due: int = 0
    """Training steps on the starting pairs that are made when the network is first drawn; ``age`` counts them."""


class Pool:
    """The networks of ``job``: ``job.make`` creates them in main memory, and they train on ``job.device``.

    Every draw comes from ``generator``, which is also in main memory, so a pool can be resumed on any device.
    """

    def __init__(self, job: Job, generator: torch.Generator) -> None:
        self.processes, self.device = job.processes, job.device
        self.make, self.config, self.generator = job.make, job.config, generator
        self.members: list[Member] = []
        self.drawn = self.untrained = self.ages = 0
        self.first_pairs: tuple[Tensor, Tensor] | None = None
        """X_s and Y_s at the start of the run, as long as a member is due to train on them."""
        self.report: Report = silent
        self.interrupted: Callable[[], bool] = lambda: False

    @property
    def full(self) -> bool:
        """True if nothing is left for :meth:`fill`."""
        return len(self.members) == self.config.pool

    def _new(self) -> Member:
        return self._start(int(torch.randint(0, 2**62, (), generator=self.generator)))

    def _start(self, seed: int) -> Member:
        network = seeded(self.make, seed)  # in main memory: the same weights on every device
        module_to_device(network, self.device)
        c = self.config
        optimizer = torch.optim.SGD(
            network.parameters(), lr=c.pool_lr, momentum=c.pool_momentum, weight_decay=c.pool_weight_decay
        )
        return Member(network, optimizer, age=0, counter=0)

    def fill(
        self,
        x_s: Tensor,
        y_s: Tensor,
        report: Report = silent,
        after: Callable[[], None] = lambda: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create networks until there are L, each with its own random number of training steps.

        One process makes these steps when the network is first drawn, which gives the same bits: a short run trains
        only the networks that it uses. Several processes make them here, at the same time.

        Args:
            x_s: network input [S, C, H, W] at the start of the run; a pool that is resumed has its own.
            y_s: targets [S, C].
            report: receives ``{"event": "pool", "step", "steps"}`` once per trained network.
            after: called once per network that is trained here. At that moment the pool can be written and resumed.
            interrupted: asked while a drawn network is trained; if true, :meth:`draw` raises :class:`Interrupted`.
        """
        self.report, self.interrupted = report, interrupted
        if self.first_pairs is not None:
            # Of a pool that is resumed: the same strides as before, on which the bits of a convolution depend.
            x, y = self.first_pairs
            self.first_pairs = torch.empty_like(x_s).copy_(x), torch.empty_like(y_s).copy_(y)
        if self.processes.size == 1:
            while len(self.members) < self.config.pool:
                member = self._new()
                member.due = int(torch.randint(1, self.config.pool_steps, (), generator=self.generator))
                member.age = member.counter = member.due
                self.members.append(member)
                self.first_pairs = x_s.clone(), y_s.clone()
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
        """Draw ``networks`` different members with equal probability, in eval mode (BatchNorm as after training).

        Raises :class:`Interrupted`, as if nothing had been drawn.
        """
        before = self.generator.get_state() if self.first_pairs is not None else None
        count, size = self.config.networks, len(self.members)
        if count == 1:
            chosen = torch.randint(0, size, (1,), generator=self.generator)
        else:
            chosen = torch.randperm(size, generator=self.generator)[:count]
        drawn = [self.members[i] for i in chosen.tolist()]
        try:
            for member in drawn:
                self._catch_up(member)
        except Interrupted:
            assert before is not None  # only a pool with networks that are due is interrupted
            self.generator.set_state(before)
            raise
        for member in drawn:
            member.network.eval()
        self._count(drawn)
        return drawn

    def _catch_up(self, member: Member) -> None:
        """Make the training steps that are due."""
        if not member.due:
            return
        assert self.first_pairs is not None
        pulse = Pulse(self.report, "pool", self.config.pool)
        trained = sum(not other.due for other in self.members)
        start = {name: value.clone() for name, value in member.network.state_dict().items()}
        for i in range(member.due):
            if self.interrupted():
                member.network.load_state_dict(start)
                member.optimizer.state.clear()
                raise Interrupted
            self._train(member, *self.first_pairs)
            pulse(trained + (i + 1) / member.due)
        member.due = 0
        if trained + 1 == len(self.members):
            self.first_pairs = None
        self.report({"event": "pool", "step": trained + 1, "steps": self.config.pool})

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
                    "due": m.due,
                }
                for m in self.members
            ],
            "first_pairs": self.first_pairs,
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
            member.due = saved.get("due", 0)  # a checkpoint of version 0.1 has none
            self.members.append(member)
        pairs = state.get("first_pairs")
        self.first_pairs = None if pairs is None else (pairs[0].to(self.device), pairs[1].to(self.device))
        self.drawn, self.untrained, self.ages = state["drawn"], state["untrained"], state["ages"]
