"""The check that selections share."""

from ..config import InputError


def check_count(n: int, count: int) -> None:
    """Raise :class:`InputError` unless ``count`` different images can be chosen from ``n``."""
    if not 1 <= count <= n:
        raise InputError(f"images: expected between 1 and {n}, the number of training images, got {count}")
