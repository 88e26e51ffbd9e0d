"""Random batches of the images of a labelled or distilled set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Order:
    """Batches of rows in a random order, each row once per epoch.

    Args:
        count: the number of rows.
        batch: rows per batch.
        generator: draws the order, in main memory.
        keep_last: whether an epoch's last batch, if it is smaller, is kept. Default True; False leaves it out.
        left: the rows of the current epoch that are still to come. Default: none.
    """

    count: int
    batch: int
    generator: torch.Generator
    keep_last: bool = True
    left: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def per_epoch(self) -> int:
        """Batches per epoch. BatchNorm needs two images, so a single last one is left out."""
        whole, rest = divmod(self.count, min(self.batch, self.count))
        return whole + (self.keep_last and rest > 1)

    def next(self) -> Tensor:
        """Return the rows of the next batch, int64."""
        batch = min(self.batch, self.count)
        if len(self.left) < (min(2, batch) if self.keep_last else batch):
            self.left = torch.randperm(self.count, generator=self.generator)
        rows, self.left = self.left[:batch], self.left[batch:]
        return rows
