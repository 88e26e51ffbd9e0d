"""Settings of what is trained on labels or on soft labels: a classifier, and a student that learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import at_least_one, check
from .errors import InputError


@dataclass(frozen=True)
class ClassifierConfig:
    """Training a classifier on a labelled set: the teacher of target-data-free distillation (table 4).

    SGD, cosine to 0 step by step, random crop and flip, images normalised by their own mean and std. The paper names a
    ResNet-18 and not its recipe; the values here are this project's.
    """

    model: str = "resnet18"
    """A name that `ssdd.build` knows. Published: resnet18."""
    width: float = 1.0
    """All channels of a network of this package are multiplied by it: 0.25 for runs on few cores."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers of a ResNet, as in `student.stem`."""
    epochs: int = 30
    """Passes over the training images."""
    batch: int = 128
    """Images per step."""
    lr: float = 0.1
    """SGD's lr at the first step."""
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 5e-4
    """SGD's weight decay, on all weights."""
    crop_pad: int = 4
    """Pixels of padding before a random crop of the old size."""
    flip: bool = True
    """Flip half of the images left to right; false for digits."""

    def __post_init__(self) -> None:
        check(self)
        at_least_one(self, "epochs", "batch")
        if self.width == 0:
            raise InputError("ClassifierConfig.width: expected more than 0, got 0.0")


@dataclass(frozen=True)
class KdConfig:
    """Target-data-free distillation (table 4): a student learns a classifier's soft labels of the distilled images.

    Cross-entropy to the soft labels at temperature 1, under one random DSA operation per batch; AdamW, cosine to 0
    epoch by epoch. Paper and published code differ in ``mode`` and ``input``; the default is what one expects.
    """

    epochs: int = 200
    """Passes over the distilled images. Published: 1000."""
    batch: int = 512
    """Images per step; an epoch's last batch may be smaller. Published: 512."""
    lr: float = 1e-4
    """AdamW's lr in the first epoch. Published: 1e-4."""
    noise_lr: float = 1e-3
    """AdamW's lr of the control with Gaussian noise. Published: 1e-3."""
    weight_decay: float = 0.0
    """AdamW's weight decay. Published: 0."""
    images: Literal["distilled", "noise"] = "distilled"
    """What teacher and student see. "noise" is the published control: Gaussian noise, drawn anew for each batch, as
    network input; a student with a random start; and `noise_lr`."""
    mode: Literal["eval", "train"] = "eval"
    """Whose statistics BatchNorm uses. "eval": the teacher's own, and in the test the student's own. "train" (code):
    the batch's, of teacher and student, also in the test, whose accuracy then depends on the batches."""
    input: Literal["normalised", "raw"] = "normalised"
    """What the networks get of X_s. "normalised": by the mean and std that the teacher was trained with, as the test
    images are. "raw" (code): pixels, while test images are normalised."""

    def __post_init__(self) -> None:
        check(self)
        at_least_one(self, "epochs", "batch")
        if self.batch < 2:
            raise InputError(f"KdConfig.batch: expected at least 2, for BatchNorm, got {self.batch}")

    @property
    def first_lr(self) -> float:
        """AdamW's lr in the first epoch, for these images."""
        return self.noise_lr if self.images == "noise" else self.lr
