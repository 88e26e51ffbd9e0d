"""Settings as plain values and back: fields by name, JSON for logs, and the versions of the software."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from .errors import InputError
from .ranges import field_types

try:
    VERSION = version("ssdd")
except PackageNotFoundError:  # a checkout that was never installed
    VERSION = "0+unknown"

_S = TypeVar("_S")


def fields(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (STAGE.FIELD, type, value) of every setting. The preset's name is not a setting."""
    kinds = field_types(settings.__class__)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        elif prefix:
            yield prefix + field.name, kinds[field.name], value


def replace_fields(settings: _S, changes: Mapping[str, Any]) -> _S:
    """Return ``settings`` with new values of some fields: ``{"distill.lr": 0.03}``, each of the field's type."""
    nested: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        stage, _, field = key.partition(".")
        if field:
            inner.setdefault(stage, {})[field] = value
        else:
            nested[stage] = value
    nested |= {stage: replace_fields(getattr(settings, stage), values) for stage, values in inner.items()}
    return dataclasses.replace(settings, **nested)  # type: ignore[type-var]


def as_dict(settings: Any) -> dict[str, Any]:
    """Return settings as plain JSON values, for logs and artifacts."""
    return dataclasses.asdict(settings)


def _alike(value: Any, old: Any) -> bool:
    """Return True if ``value``, from a JSON file, has the type of ``old``; a whole number is accepted for a float."""
    if isinstance(old, tuple):
        return isinstance(value, list | tuple) and all(type(part) is int for part in value)
    return type(value) is type(old) or (isinstance(old, float) and type(value) is int)


def from_dict(like: _S, values: Mapping[str, Any]) -> _S:
    """Return the settings that :func:`as_dict` turned into ``values``. ``like``: settings of the same class.

    A field that ``values`` does not have keeps the value of ``like``. An unknown field raises :class:`InputError`.
    """
    changes = {}
    for key, value in values.items():
        if key not in {f.name for f in dataclasses.fields(like)}:  # type: ignore[arg-type]
            raise InputError(f"{type(like).__name__}: no setting {key!r} in this version of ssdd")
        old = getattr(like, key)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            value = from_dict(old, value)
        elif dataclasses.is_dataclass(old) or not _alike(value, old):
            raise InputError(f"{type(like).__name__}.{key}: expected a value like {old!r}, got {value!r}")
        changes[key] = tuple(value) if isinstance(old, tuple) else value
    return dataclasses.replace(like, **changes)  # type: ignore[type-var]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results are computed with."""
    own = {"python": platform.python_version(), "ssdd": VERSION}
    return own | {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
