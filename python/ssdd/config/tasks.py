"""Settings of a classifier, which learns from labels, and of a student, which learns from a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import InputError
from .ranges import check_at_least_one, check_positive, check_values


@dataclass(frozen=True)
class ClassifierConfig:
    """Training a classifier on a labelled set: the teacher of target-data-free distillation (table 4).

    SGD with a learning rate that falls to 0 along a cosine step by step, random crops and flips, images normalised
    with their own mean and std. The paper names a ResNet-18 and not its recipe; the values here are this project's.
    """

    model: str = "resnet18"
    """A name that `ssdd.build` knows. Published: resnet18."""
    width: float = 1.0
    """Factor on all channels of a network of this package: 0.25 for runs on few cores."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers of a ResNet, as in `student.stem`."""
    epochs: int = 30
    """Passes over the training images."""
    batch: int = 128
    """Images per step."""
    lr: float = 0.1
    """SGD's initial learning rate."""
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 5e-4
    """SGD's weight decay, on all weights."""
    crop_pad: int = 4
    """Pixels of padding before a random crop to the original size."""
    flip: bool = True
    """Flip half of the images left to right; false for digits."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "epochs", "batch")
        check_positive(self, "width")


@dataclass(frozen=True)
class KdConfig:
    """Target-data-free distillation (table 4): a student learns a classifier's soft labels of the distilled images.

    The loss is the cross-entropy to the soft labels at temperature 1, under one random DSA operation per batch. AdamW's
    learning rate falls to 0 along a cosine epoch by epoch. The paper names neither ``mode`` nor ``input``; the default
    is the usual choice, which is not that of the published code.
    """

    epochs: int = 200
    """Passes over the distilled images. Published: 1000."""
    batch: int = 512
    """Images per step; an epoch's last batch may be smaller. Published: 512."""
    lr: float = 1e-3
    """AdamW's learning rate in the first epoch. Published: 1e-4, for 1000 epochs of several steps; in few steps a
    student hardly learns with it (docs/transfer.md)."""
    noise_lr: float = 1e-3
    """AdamW's learning rate in the first epoch of the control with Gaussian noise. Published: 1e-3."""
    weight_decay: float = 0.0
    """AdamW's weight decay. Published: 0."""
    images: Literal["distilled", "noise"] = "distilled"
    """Images that teacher and student see. "noise" is the published control: the networks' input is Gaussian noise,
    drawn anew for each batch, the student's initial weights are random, and `noise_lr` is used."""
    mode: Literal["eval", "train"] = "eval"
    """Statistics that BatchNorm uses. "eval": the running statistics of the teacher, and in the test those of the
    student. "train" (code): those of the batch, also in the test, whose accuracy then depends on the batches."""
    input: Literal["normalised", "raw"] = "normalised"
    """How X_s enters the networks. "normalised": with the mean and std that the teacher was trained with, as the test
    images. "raw" (code): as pixels, while test images are normalised."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "epochs", "batch")
        if self.batch < 2:
            raise InputError(f"KdConfig.batch: expected at least 2, for BatchNorm, got {self.batch}")

    @property
    def first_lr(self) -> float:
        """AdamW's learning rate in the first epoch, for these images."""
        return self.noise_lr if self.images == "noise" else self.lr
