"""The order in which training meets the images of a labelled or distilled set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Order:
    """Batches of ``count`` rows, each row once per epoch. ``kept``: an epoch's last batch is smaller, not left out."""

    count: int
    batch: int
    generator: torch.Generator
    kept: bool = True
    left: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """The rows of this epoch that are still to come."""

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch. BatchNorm needs two images, so a single last one is left out."""
        whole, rest = divmod(self.count, min(self.batch, self.count))
        return whole + (self.kept and rest > 1)

    def next(self) -> Tensor:
        """Return the rows of the next batch, int64."""
        batch = min(self.batch, self.count)
        if len(self.left) < (min(2, batch) if self.kept else batch):
            self.left = torch.randperm(self.count, generator=self.generator)
        rows, self.left = self.left[:batch], self.left[batch:]
        return rows
