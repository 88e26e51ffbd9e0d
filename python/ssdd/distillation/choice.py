"""The choice of training images, for the start of a distillation and for baselines."""

from __future__ import annotations

from torch import Tensor, nn

from ..data import gather, module_to_device
from ..models import seeded
from ..selection import Candidates, choose
from .job import Job


def choose_images(name: str, job: Job, targets: Tensor, count: int) -> Tensor:
    """Choose training images of a job by a selection of :mod:`ssdd.selection`.

    Args:
        name: the name of the selection.
        job: its images, representations, seed and device, and what makes a network with C outputs.
        targets: what a network learns to give for the training images, float32 [N, C].
        count: how many to choose.

    Returns:
        ``count`` different rows, int64 [count].
    """
    data, device = job.data, job.device

    def batch(rows: Tensor) -> tuple[Tensor, Tensor]:
        return data.preprocessing(gather(data.x_train, rows, device)), gather(targets, rows, device)

    def network(seed: int) -> nn.Module:
        return module_to_device(seeded(job.make, seed), device)

    candidates = Candidates(job.representations, targets, data.y_train, batch, network)
    return choose(name, candidates, count, job.seed)
