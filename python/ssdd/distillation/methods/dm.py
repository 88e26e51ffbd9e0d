"""DM, distribution matching (Zhao and Bilen, WACV 2023): mean features of each class, in random networks."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config import InputError
from ...data import apply_dsa, draw_dsa
from ...models import batch_features
from ..networks import Untrained
from ..pool import Pool
from ._base import LabelMethod, Step


class Dm(LabelMethod):
    """The squared distance of mean real and mean distilled features, summed over the classes.

    Each step starts new networks, in train mode as published: BatchNorm normalises either batch by its own statistics.
    Both batches go through one operation of DSA. Labels are fixed, and a real batch holds equal shares of the classes.
    """

    shares = ("networks",)

    @property
    def learns_targets(self) -> bool:
        return False

    def initial_rows(self) -> Tensor:
        rows = super().initial_rows()
        there = self.targets[rows].sum(0) > 0
        if not bool(there.all()):
            missing = int((~there).nonzero()[0, 0])
            raise InputError(
                f"distill.images: the method 'dm' needs images of every class, and {len(rows)} chosen by "
                f"initial={self.config.initial!r} hold none of class {missing}; choose more, or initial='random'"
            )
        return rows

    def groups(self, rows: Tensor) -> list[Tensor]:
        labels = self.targets[rows].argmax(1)
        return [rows[labels == c] for c in labels.unique().tolist()]

    def networks(self, generator: torch.Generator) -> Pool:
        return Untrained(self.job, generator)

    def loss(self, step: Step) -> Tensor:
        x_s, x_b = step.x_s, step.x_b
        if self.config.dm.augment:
            drawn = draw_dsa(step.generator)
            x_s, x_b = apply_dsa(x_s, drawn), apply_dsa(x_b, drawn)
        losses = []
        for network in step.networks:
            f = batch_features(network)
            with torch.no_grad():
                f_b = f(x_b)
            real, distilled = class_means(f_b, step.y_b), class_means(f(x_s), step.y_s)
            there = (step.y_b.sum(0) > 0).to(f_b.dtype)
            losses.append((there * (real - distilled).square().sum(1)).sum())
        return torch.stack(losses).mean()


def class_means(features: Tensor, one_hot: Tensor) -> Tensor:
    """Features [N, D] -> their mean per class [C, D]; 0 for a class without images."""
    return one_hot.mT @ features / one_hot.sum(0).clamp_min(1)[:, None]


METHOD = Dm
