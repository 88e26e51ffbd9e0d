"""The settings of single methods: the published convention of each is its default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ranges import check_at_least_one, check_positive, check_values


@dataclass(frozen=True)
class FrepoConfig:
    """FRePo (Zhou et al., NeurIPS 2022): the method "frepo"."""

    ridge: float = 1e-6
    """λ as a fraction of tr(K_ss)/S; the gradient flows through the trace."""
    margin: float = 1.0
    """Weight of the label margin: the mean, over Y_s, of -min(largest - second largest, 1 / classes)."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class DmConfig:
    """Distribution matching (Zhao and Bilen, WACV 2023): the method "dm"."""

    augment: bool = True
    """One random operation of DSA (colour, crop, cutout, flip, scale, rotate) per step, the same for X_s and X_b."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class ClpDdConfig:
    """KRR on frozen features with cross-entropy (CLP-DD, 2026): the method "clp-dd". Its values are not published."""

    targets: Literal["labels", "prototypes"] = "labels"
    """What real images are to be mapped to: their labels, or soft assignments of the teacher's representations to
    k-means prototypes, which need no labels."""
    prototypes: int = 50
    """Number of prototypes."""
    sharpness: float = 1.0
    """An assignment is the softmax of -sharpness d² / m, where d is the distance to a prototype and m the mean squared
    distance to the nearest one."""
    temperature: float = 0.1
    """Divides the predictions before the softmax of the outer loss."""
    ridge: float = 1e-6
    """λ as a fraction of tr(K_ss)/S; the gradient flows through the trace."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "prototypes")
        check_positive(self, "sharpness", "temperature")


@dataclass(frozen=True)
class RfadConfig:
    """RFAD (Loo et al., NeurIPS 2022), random features of the NNGP kernel: the method "rfad"."""

    networks: int = 8
    """Random networks per outer step, whose features are joined."""
    ridge: float = 5e-3
    """λ as a fraction of tr(K_ss)/S; the gradient flows through the trace."""
    platt: bool = True
    """Cross-entropy of the predictions times a learned number (Platt scaling); false: half the mean squared error."""
    platt_lr: float = 0.01
    """AdamW's lr of the logarithm of that number."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "networks")


@dataclass(frozen=True)
class KipConfig:
    """KIP (Nguyen et al., ICLR 2021), with the kernel of infinitely wide ReLU networks: the method "kip"."""

    kernel: Literal["ntk", "nngp"] = "ntk"
    """Kernel: neural tangent kernel, or the covariance of networks with random weights."""
    depth: int = 1
    """Hidden layers."""
    w_std: float = 2**0.5
    """Standard deviation of the weights, times the square root of their number of inputs."""
    b_std: float = 0.1
    """Standard deviation of the biases."""
    ridge: float = 1e-6
    """λ as a fraction of tr(K_ss)/S; the gradient flows through the trace."""

    def __post_init__(self) -> None:
        check_values(self)
        check_positive(self, "w_std")
