"""The settings of single methods: the published convention of each is its default."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import check_values


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
