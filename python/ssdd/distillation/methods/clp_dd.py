"""CLP-DD (2026): one fixed network, and the cross-entropy of kernel ridge regression's predictions."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

import ssdd_ext

from ...config import DistillConfig, InputError
from ...data import ImageSet, to_device
from ...selection import kmeans_centres
from ..networks import Fixed
from ..pool import Pool
from ._base import LabelMethod, Method, Step, embed


class ClpDd(LabelMethod):
    """The teacher's features, a linear kernel, and cross-entropy with a temperature to labels or to soft assignments.

    Soft assignments to k-means prototypes of the teacher's representations need no labels
    (``clp_dd.targets="prototypes"``).
    """

    shares = ("batch",)
    ridge = "clp_dd.ridge"

    @property
    def target_kind(self) -> Literal["representation", "labels", "assignments"]:
        return "labels" if _has_labels(self.config) else "assignments"

    @classmethod
    def check(cls, config: DistillConfig, data: ImageSet) -> None:
        if _has_labels(config):
            super().check(config, data)
        elif config.clp_dd.prototypes > len(data.x_train):
            raise InputError(
                f"distill.clp_dd.prototypes: expected at most {len(data.x_train)}, the training images of {data.name}, "
                f"got {config.clp_dd.prototypes}"
            )

    @classmethod
    def outputs(cls, config: DistillConfig, data: ImageSet, dimension: int | None) -> int:
        return data.classes if _has_labels(config) else config.clp_dd.prototypes

    @classmethod
    def needs_teacher(cls, config: DistillConfig) -> bool:
        return True

    @classmethod
    def needs_representations(cls, config: DistillConfig) -> bool:
        return True

    @cached_property
    def targets(self) -> Tensor:
        if _has_labels(self.config):
            return self.job.data.one_hot()
        assert self.job.representations is not None  # check refuses a job without them
        return self.targets_from(self.job.representations)

    @cached_property
    def _prototypes(self) -> tuple[Tensor, float]:
        """The prototypes, float32 [K, D], and the mean squared distance of a representation to the nearest one."""
        points = self.job.representations
        assert points is not None  # check refuses a job without them
        centres = kmeans_centres(points, self.config.clp_dd.prototypes, self.job.seed)
        nearest = torch.cat([torch.cdist(part.double(), centres).min(1).values for part in points.split(4096)])
        return centres.float(), max(float(nearest.square().mean()), 1e-12)

    def targets_from(self, representations: Tensor) -> Tensor:
        """Return soft assignments to the prototypes, [N, D] -> [N, K]."""
        centres, spread = self._prototypes
        distance = torch.cdist(representations, to_device(centres, representations.device))
        return (-self.config.clp_dd.sharpness / spread * distance.square()).softmax(1)

    def initial_rows(self) -> Tensor:
        return (LabelMethod if _has_labels(self.config) else Method).initial_rows(self)

    def targets_of(self, rows: Tensor, pixels: Tensor) -> Tensor:
        return (LabelMethod if _has_labels(self.config) else Method).targets_of(self, rows, pixels)

    def networks(self, generator: torch.Generator) -> Pool:
        assert self.job.represent is not None  # check refuses a job without it
        return Fixed(self.job, generator, self.job.represent)

    def loss(self, step: Step) -> Tensor:
        f_s, f_b = embed(step)
        config = self.config.clp_dd
        return ssdd_ext.krr_cross_entropy(
            f_s,
            step.y_s,
            f_b,
            step.y_b,
            ridge=ssdd_ext.Ridge.mean_trace(config.ridge),
            temperature=config.temperature,
            on_failure="nan",
        ).mean()


def _has_labels(config: DistillConfig) -> bool:
    return config.clp_dd.targets == "labels"


METHOD = ClpDd
