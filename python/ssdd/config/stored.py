"""Where settings that were kept part from those at hand: the one rule for checkpoints and for a study's cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .change import as_dict
from .settings import Preset


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """STAGE.FIELD -> (what stands in ``stored``, what in ``wanted``), where the two part; values as JSON has them.

    A setting that is younger than ``stored`` does not count where it stands at its default, which is what the older
    code did. What is no setting, and missing in one of them, is None there.
    """
    there, here, default = dict(_flat(stored)), dict(_flat(wanted)), dict(_flat(as_dict(Preset("default"))))
    pairs = {
        key: (there.get(key, default.get(key)), here.get(key))
        for key in sorted(there.keys() | here.keys())
    }  # fmt: skip
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
