"""The five arms that the examples compare: what an encoder was pre-trained on.

All arms of one seed start from the same weights, take the same number of steps, and see the same teacher. The teacher
is trained once, without labels, and is the same for all seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

import ssdd

NONE, RANDOM, K_MEANS, KRR_ST, FULL = "none", "random + teacher", "k-means + teacher", "KRR-ST", "full set + teacher"
ARMS = (NONE, RANDOM, K_MEANS, KRR_ST, FULL)

DIFFERENCES = (
    *((arm, NONE) for arm in ARMS[1:]),
    (KRR_ST, RANDOM),
    (KRR_ST, K_MEANS),
    (FULL, RANDOM),
)
"""The pairs of arms whose difference the pages show."""


@dataclass(frozen=True)
class Recipe:
    """How the arms of one image set are made. ``distill.images`` is the number of pairs of every arm but the last."""

    student: str
    """The encoder, a name that ``ssdd.build`` knows."""
    teacher: ssdd.TeacherConfig
    distill: ssdd.DistillConfig
    pretrain: ssdd.PretrainConfig


class Arms:
    """The arms of one image set.

    Args:
        data: the images; labels are not used.
        recipe: teacher, distillation and pre-training.
        folder: where the teacher and the distilled sets are kept. They are read if they are there.
        say: receives one line of text per part that takes long. Default: nothing is said.
    """

    def __init__(
        self, data: ssdd.ImageSet, recipe: Recipe, folder: Path, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.data, self.recipe, self.folder, self.say = data, recipe, folder, say
        folder.mkdir(parents=True, exist_ok=True)
        self.pairs, self.encoder = lru_cache(1)(self._pairs), lru_cache(1)(self._encoder)  # an arm at a time

    @cached_property
    def teacher(self) -> ssdd.Teacher:
        """The self-supervised teacher, trained if its file is not there."""
        file = self.folder / f"teacher-{self.data.name}.safetensors"
        if not file.exists():
            self.say(f"{self.data.name}: training the teacher")
            ssdd.train_teacher(self.data, self.recipe.teacher).save(file)
        return ssdd.Teacher.load(file)

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Representations of the training and of the held-out images, float32 [N, D] and [Q, D].

        Each of the D numbers is centred, and one factor gives all of them a mean variance of 1. A learning rate then
        means the same for every teacher.
        """
        known = ssdd.represent(self.teacher, self.data)
        centre = known.train.mean(0)
        scale = (known.train - centre).square().mean().sqrt()
        return (known.train - centre) / scale, (known.test - centre) / scale

    def make(self) -> ssdd.Network:
        """Return the encoder with new random weights and a last layer that predicts a target."""
        return ssdd.build(self.recipe.student, self.data.channels, self.data.size, self.targets[0].shape[1])

    def _pairs(self, arm: str, seed: int) -> ssdd.DistilledSet | None:
        """Return the images and targets that the encoder of ``arm`` is pre-trained on; None for the arm "none"."""
        count, (train, _) = self.recipe.distill.images, self.targets
        if arm == NONE:
            return None
        if arm == KRR_ST:
            return self._distilled(seed)
        if arm == FULL:
            rows = torch.arange(len(train))
        elif arm == K_MEANS:
            rows = ssdd.kmeans_medoids(train, count, seed)
        else:
            rows = ssdd.random_subset(len(train), count, seed)
        return ssdd.baseline(self.data, rows, train, method=arm, seed=seed)

    def _distilled(self, seed: int) -> ssdd.DistilledSet:
        file = self.folder / f"distilled-{self.data.name}-{seed}.safetensors"
        if not file.exists():
            self.say(f"{self.data.name}, seed {seed}: distilling {self.recipe.distill.images} images")
            job = ssdd.Job(self.data, self.targets[0], self.make, self.recipe.distill, seed)
            ssdd.distill(job).result.save(file)
        return ssdd.DistilledSet.load(file)

    def _encoder(self, arm: str, seed: int) -> ssdd.Network:
        """Return the network of ``arm``, pre-trained unless the arm is "none". The last one is kept: do not train it,
        train a copy."""
        network, pairs = ssdd.seeded(self.make, seed), self.pairs(arm, seed)
        if pairs is not None:
            self.say(f"{self.data.name}, seed {seed}, {arm}: pre-training")
            ssdd.pretrain(network, pairs, self.recipe.pretrain, seed=seed)
        return network.eval()

    def error(self, arm: str, seed: int) -> float | None:
        """Return the encoder's squared error on held-out images as a fraction of the teacher's variance."""
        if arm == NONE:
            return None
        expected = self.targets[1]
        with torch.no_grad():
            inputs = self.data.preprocessing(self.data.x_test)
            got = torch.cat([self.encoder(arm, seed)(part) for part in inputs.split(500)])
        return float((got - expected).square().sum() / (expected - expected.mean(0)).square().sum())
