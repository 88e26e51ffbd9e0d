"""High loss: images that a student, briefly trained on all of them, predicts worst."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._candidates import Candidates, check_count

NEEDS_REPRESENTATIONS = False

STUDENTS = 3
"""Networks whose errors are averaged."""
BATCH = 256
LR = 0.1
MOMENTUM = 0.9


def select(candidates: Candidates, count: int, seed: int) -> Tensor:
    """The images with the largest error (MKDT, arXiv 2410.02116), the largest first.

    ``STUDENTS`` networks train for one epoch of plain SGD on (image, target) of the whole set. The error of an image is
    the squared difference of prediction and target, averaged over the target's numbers and over the networks.
    """
    check_count(len(candidates.targets), count)
    return errors(candidates, seed).argsort(descending=True, stable=True)[:count]


def errors(candidates: Candidates, seed: int) -> Tensor:
    """The error of each training image, float32 [N], in main memory."""
    n = len(candidates.targets)
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros(n)
    for _ in range(STUDENTS):
        network = candidates.network(int(torch.randint(0, 2**62, (), generator=g))).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
        for rows in torch.randperm(n, generator=g).split(BATCH):
            if len(rows) == 1:
                continue  # BatchNorm cannot normalise the single pixel that small images end in
            x, y = candidates.batch(rows)
            loss = F.mse_loss(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        for rows in torch.arange(n).split(BATCH):
            x, y = candidates.batch(rows)
            with torch.no_grad():
                error = (network(x) - y).square().mean(1)
            total[rows] += error.cpu()
    return total / STUDENTS
