"""Settings as text and back: single fields changed by name, plain values for logs, and the versions beside them."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from .errors import InputError
from .settings import Settings

try:
    VERSION = version("ssdd")
except PackageNotFoundError:  # a checkout that was never installed
    VERSION = "0+unknown"

_S = TypeVar("_S")


def _parse(key: str, text: str, like: Any) -> Any:
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(like, tuple):
            return tuple(int(part) for part in text.replace(",", "-").split("-"))
        return type(like)(text)
    except (ValueError, KeyError):
        raise InputError(f"{key}: expected a value like {like!r}, got {text!r}") from None


def _with(settings: _S, path: list[str], key: str, text: str) -> _S:
    names = [f.name for f in dataclasses.fields(settings)]  # type: ignore[arg-type]
    if path[0] not in names:
        raise InputError(f"{key}: no setting {path[0]!r} here; there are {', '.join(names)}")
    old = getattr(settings, path[0])
    if dataclasses.is_dataclass(old) != (len(path) > 1):
        raise InputError(f"{key}: expected STAGE.FIELD, such as distill.lr")
    new = _with(old, path[1:], key, text) if len(path) > 1 else _parse(key, text, old)
    return dataclasses.replace(settings, **{path[0]: new})  # type: ignore[type-var]


def with_settings(settings: Settings, changes: Mapping[str, str]) -> Settings:
    """``settings`` with single fields changed by name, as text: ``{"distill.lr": "0.03"}``.

    Raises :class:`InputError` for an unknown name or a value of the wrong kind.
    """
    for key, text in changes.items():
        settings = _with(settings, key.split("."), key, text)
    return settings


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON values, for logs and for the artifact."""
    return dataclasses.asdict(settings)


def _alike(value: Any, old: Any) -> bool:
    """Whether ``value``, of a JSON file, is of the kind of ``old``; a whole number will do for a float."""
    if isinstance(old, tuple):
        return isinstance(value, list | tuple) and all(type(part) is int for part in value)
    return type(value) is type(old) or (isinstance(old, float) and type(value) is int)


def from_dict(like: _S, values: Mapping[str, Any]) -> _S:
    """Settings from what :func:`as_dict` made of them, read back from JSON. ``like``: settings of the same class.

    A field that is not in ``values`` keeps the value of ``like``; an unknown one is an :class:`InputError`.
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
    """What a result is computed with."""
    found = {"python": platform.python_version(), "ssdd": VERSION}
    return found | {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
