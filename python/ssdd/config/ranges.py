"""The checks that every stage's settings share."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from .errors import InputError


@cache
def field_types(config_class: type) -> dict[str, Any]:
    """Return the type of every field of a class of settings; read once, as every check and every flag asks for them."""
    return get_type_hints(config_class)


def check_values(config: Any) -> None:
    """Refuse values no stage could use, naming the field: a wrong word for a choice, a number out of range."""
    name = type(config).__name__
    for key, kind in field_types(config.__class__).items():
        value = getattr(config, key)
        words = get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()
        if words and value not in words:
            raise InputError(f"{name}.{key}: expected one of {', '.join(map(repr, words))}, got {value!r}")
        if isinstance(value, float) and not (0 <= value < float("inf")):
            raise InputError(f"{name}.{key}: expected a finite number that is not negative, got {value}")
        if isinstance(value, int) and not isinstance(value, bool) and value < 0:
            raise InputError(f"{name}.{key}: expected a whole number that is not negative, got {value}")
        if key == "widths" and (not value or any(width < 1 for width in value)):
            raise InputError(f"{name}.widths: expected one positive width per block, such as 16-32, got {value!r}")


def check_at_least_one(config: Any, *keys: str) -> None:
    """Refuse counts below 1, naming the field."""
    for key in keys:
        if getattr(config, key) < 1:
            raise InputError(f"{type(config).__name__}.{key}: expected at least 1, got {getattr(config, key)}")


def check_positive(config: Any, *keys: str) -> None:
    """Refuse numbers that are not above 0, naming the field."""
    for key in keys:
        if getattr(config, key) <= 0:
            raise InputError(f"{type(config).__name__}.{key}: expected more than 0, got {getattr(config, key)}")
