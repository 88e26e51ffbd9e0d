"""Narrower networks of the same shape."""

from __future__ import annotations


def scale_channels(channels: int, width: float) -> int:
    """Return ``width`` times the ``channels`` of a layer, rounded, at least one."""
    return max(1, round(channels * width))
