"""What a method of distillation is: its targets, its networks and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...artifact import transformed, versions_per_image
from ...config import DistillConfig, InputError
from ...data import ImageSet, to_device
from ...models import Network, frozen, in_chunks
from ...selection import needs_representations
from ..choice import choose_images
from ..job import Job
from ..pool import Pool
from ..storage import image_count


@dataclass(frozen=True)
class Step:
    """What the loss of one outer step is computed from."""

    networks: Sequence[Network]
    """Those drawn for this step."""
    x_s: Tensor
    """The distilled images as network input, [S, C, H, W], with their gradients."""
    y_s: Tensor
    """Their targets, [S, C]; with gradients if they are learned."""
    x_b: Tensor
    """The real batch as network input, [Q, C, H, W]."""
    y_b: Tensor
    """Its targets, [Q, C]."""
    learned: Mapping[str, Tensor]
    """What else the method learns: :meth:`Method.parameters`, under the same names."""
    generator: torch.Generator
    """For random numbers that a loss needs; in main memory."""


class Method:
    """One method for one job. This class is what KRR-ST and most others share; a subclass changes what differs.

    The class methods answer what must be known before there is a teacher or a job.
    """

    shares: ClassVar[tuple[str, ...]] = ("batch", "networks")
    """What several processes may share: "batch" if the loss is a mean over the real batch, "networks" if it is one over
    the networks drawn."""
    ridge: ClassVar[str | None] = None
    """The setting of ``distill`` to enlarge if the loss is not finite, such as "frepo.ridge"; None: there is none."""

    def __init__(self, job: Job) -> None:
        self.job, self.config = job, job.config

    @property
    def target_kind(self) -> Literal["representation", "labels", "assignments"]:
        """What Y_s stands for in the artifact."""
        return "representation"

    @classmethod
    def check(cls, config: DistillConfig, data: ImageSet) -> None:
        """Raise :class:`InputError` if ``data`` lacks what the method needs, or a setting has no meaning for it."""

    @classmethod
    def outputs(cls, config: DistillConfig, data: ImageSet, dimension: int | None) -> int:
        """Numbers in a target. ``dimension``: those of a representation; None if there are none."""
        assert dimension is not None  # check has asked for representations
        return dimension

    @classmethod
    def needs_teacher(cls, config: DistillConfig) -> bool:
        """True if a run needs the teacher itself."""
        return config.needs_teacher

    @classmethod
    def needs_representations(cls, config: DistillConfig) -> bool:
        """True if a run needs the teacher's representations of the training images."""
        return True

    @cached_property
    def targets(self) -> Tensor:
        """What real images are to be mapped to, float32 [N, C], one row per training image, in main memory."""
        assert self.job.representations is not None  # check has asked for them
        return self.job.representations

    @property
    def count(self) -> int:
        """S, the number of distilled images."""
        return image_count(self.config, self.job.data, self.targets.shape[1])

    def targets_from(self, representations: Tensor) -> Tensor:
        """Return the targets of images with these ``representations``, [N, D] -> [N, C], on their device."""
        return representations

    def initial_rows(self) -> Tensor:
        """Return the training images that X_s starts from, int64 [S]: the selection ``config.initial`` chooses them."""
        return choose_images(self.config.initial, self.job, self.targets, self.count)

    def targets_of(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Return the targets of the training images ``rows``, [T S, C]: of ``pixels`` [S, C, H, W], then of their
        transforms."""
        job, transforms = self.job, self.config.transforms
        if transforms == "none":
            return self.targets[rows]
        assert job.represent is not None  # check refuses a job without it
        views = transformed(transforms, to_device(job.data.preprocessing.normalise(pixels), job.device))
        with torch.no_grad():
            of_views = self.targets_from(job.represent(views[len(rows) :]))
        return torch.cat([self.targets[rows], of_views.cpu()])

    def start(self, targets: Tensor) -> Tensor:
        """Return Y_s before the first step, from the targets of the initial images; both [T S, C]."""
        return targets.clone()

    @property
    def learns_targets(self) -> bool:
        """True if Y_s is learned."""
        return self.config.targets == "learned"

    def parameters(self) -> dict[str, tuple[Tensor, float]]:
        """Return what is learned beside X_s and Y_s: name -> (first value, its lr, which falls as ``config.lr``
        does)."""
        return {}

    def groups(self, rows: Tensor) -> list[Tensor]:
        """The images that real batches are drawn from, int64, in groups that give a batch equal shares."""
        return [rows]

    def networks(self, generator: torch.Generator) -> Pool:
        """Where the networks of each outer step come from."""
        return Pool(self.job, generator)

    def loss(self, step: Step) -> Tensor:
        """What an outer step minimises, a scalar."""
        raise NotImplementedError


class LabelMethod(Method):
    """A method whose targets are labels of the training images. It needs no teacher."""

    @property
    def target_kind(self) -> Literal["representation", "labels", "assignments"]:
        return "labels"

    @classmethod
    def check(cls, config: DistillConfig, data: ImageSet) -> None:
        if data.classes < 2:
            why = "has none" if data.y_train is None else "has one class"
            raise InputError(
                f"method: {config.method!r} learns from labels of the training images, and {data.name} {why}; "
                "use labelled images, or the method 'krr-st'"
            )
        for setting, word in (("targets", "tied"), ("teacher_in_loop", "recomputed")):
            if getattr(config, setting) == word:
                raise InputError(
                    f"distill.{setting}: {word!r} is for targets of a teacher, and the targets of {config.method!r} "
                    "are labels"
                )
        if config.views:
            raise InputError(
                f"distill.views: expected 0, as the targets of {config.method!r} are labels, got {config.views}"
            )

    @classmethod
    def outputs(cls, config: DistillConfig, data: ImageSet, dimension: int | None) -> int:
        return data.classes

    @classmethod
    def needs_teacher(cls, config: DistillConfig) -> bool:
        return False

    @classmethod
    def needs_representations(cls, config: DistillConfig) -> bool:
        return needs_representations(config.initial)

    @cached_property
    def targets(self) -> Tensor:
        """Labels, one-hot."""
        return self.job.data.one_hot()

    def initial_rows(self) -> Tensor:
        """A random start has the same number of images of each class, as published; one more of the first classes if
        they do not share them evenly."""
        if self.config.initial != "random":
            return super().initial_rows()
        labels, classes = self.job.data.y_train, self.job.data.classes
        assert labels is not None  # check has asked for them
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.job.seed))
        each = [order[labels[order] == c] for c in range(classes)]
        turns = range(min(max(map(len, each)), self.count))
        return torch.cat([rows[turn : turn + 1] for turn in turns for rows in each])[: self.count]

    def targets_of(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Labels of a transform are those of the image."""
        return self.targets[rows].repeat(versions_per_image(self.config.transforms), 1)


def embed(step: Step) -> tuple[Tensor, Tensor]:
    """Features of X_s [B, S, D], with their gradients, and of the real batch [B, Q, D], without, of B networks.

    In eval mode, and nothing flows to the networks' weights.
    """
    features = [frozen(network) for network in step.networks]
    return torch.stack([f(step.x_s) for f in features]), torch.stack([in_chunks(f, step.x_b) for f in features])
