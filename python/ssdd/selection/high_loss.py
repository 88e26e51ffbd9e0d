"""High loss: images that a student, briefly trained on all of them, predicts worst."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import gather, module_to_device
from ..models import frozen, in_chunks, seeded
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
    data, targets, device = candidates.data, candidates.targets, candidates.device
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(targets))
    for _ in range(STUDENTS):
        network = seeded(candidates.make, int(torch.randint(0, 2**62, (), generator=g)))
        module_to_device(network, device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
        for rows in torch.randperm(len(targets), generator=g).split(BATCH):
            if len(rows) == 1:
                continue  # BatchNorm cannot normalise the single pixel that small images end in
            x = data.preprocessing(gather(data.x_train, rows, device))
            loss = F.mse_loss(network(x), gather(targets, rows, device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        features = frozen(network)
        for rows in torch.arange(len(targets)).split(BATCH):
            x = data.preprocessing(gather(data.x_train, rows, device))
            with torch.no_grad():
                predicted = network.head(in_chunks(features, x))
            total[rows] += (predicted - gather(targets, rows, device)).square().mean(1).cpu()
    return total / STUDENTS
