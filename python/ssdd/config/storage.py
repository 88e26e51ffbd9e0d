"""The settings of how distilled images and targets are stored while they are learned."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import check_at_least_one, check_values


@dataclass(frozen=True)
class BasesConfig:
    """Images and targets as sums of principal components (2507.21455): the storage "bases"."""

    images: int = 64
    """Components of the images; all of them if there are fewer."""
    shrink: int = 2
    """The components have the image's height and width divided by this. 2 is published; 1, the full resolution, is for
    very small images."""
    targets: int = 64
    """Components of the targets; all of them if there are fewer."""
    hidden: int = 0
    """Hidden units of a network that predicts the targets' coordinates of an image's transformed versions from those of
    the image itself (published: 4 to 16). 0: the coordinates of every version are learned and stored."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "images", "targets", "shrink")


@dataclass(frozen=True)
class PyramidConfig:
    """Images as sums of several resolutions: the storage "pyramid"."""

    levels: int = 4
    """Resolutions: the full one, half of it, a quarter and so on, down to one pixel at most."""
    decorrelate: bool = True
    """Learn colours whose covariance over the training pixels is the identity, instead of red, green and blue."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "levels")
