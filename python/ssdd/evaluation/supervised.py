"""What training on labels shares: the order of the images, and the accuracy on held-out ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..artifact import Preprocessing
from ..data import ImageSet, to_device
from ..models import Network, frozen, in_chunks

LOG_EVERY = 50


@dataclass
class Order:
    """Batches of ``count`` rows, each row once per epoch. ``kept``: an epoch's last batch is smaller, not left out."""

    count: int
    batch: int
    generator: torch.Generator
    kept: bool = True
    left: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """The rows of this epoch that are still to come."""

    def next(self) -> Tensor:
        """Return the rows of the next batch, int64. BatchNorm needs two images, so a single last one is left out."""
        batch = min(self.batch, self.count)
        if len(self.left) < (min(2, batch) if self.kept else batch):
            self.left = torch.randperm(self.count, generator=self.generator)
        rows, self.left = self.left[:batch], self.left[batch:]
        return rows


def accuracy(network: Network, preprocessing: Preprocessing, data: ImageSet) -> float:
    """Return the accuracy of ``network`` on the held-out images of ``data``, in percent, in eval mode."""
    assert data.y_test is not None
    features, device = frozen(network), network.head.weight.device
    right = 0
    for images, labels in zip(data.x_test.split(500), data.y_test.split(500), strict=True):
        with torch.no_grad():
            scores = network.head(in_chunks(features, preprocessing(to_device(images, device))))
        right += int((scores.argmax(1).cpu() == labels).sum())
    return 100 * right / len(data.y_test)
