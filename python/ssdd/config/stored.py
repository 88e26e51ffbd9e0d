"""Stored settings: read under today's names, and compared with the current ones.

Runs, checkpoints, artifacts, and the cells and files of studies all use these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .settings import Settings
from .values import as_dict

RENAMED = {
    "teacher.rate": "teacher.lr",
    "teacher.follow": "teacher.ema",
    "distill.rate": "distill.lr",
    "distill.rate_floor": "distill.lr_floor",
    "distill.pool_rate": "distill.pool_lr",
    "distill.smooth": "distill.tv_weight",
    "distill.near": "distill.init_weight",
    "pretrain.rate": "pretrain.lr",
    "finetune.rate": "finetune.lr",
}
"""Settings of version 0.1 that have another name now."""

BEFORE = {
    "finetune.normalise": "source",
    "finetune.last_batch": "dropped",
    "finetune.untested_classes": "kept",
}
"""Settings whose default is not what the code did that had them not."""


def current_name(key: str) -> str:
    """Return today's name of the setting that was once called ``key`` (STAGE.FIELD)."""
    return RENAMED.get(key, key)


def current_names(stored: Mapping[str, Any], stage: str = "") -> dict[str, Any]:
    """Return ``stored``, which an earlier version may have written, with each field under today's name.

    ``stage``: the stage whose fields ``stored`` holds (default: it holds stages). Keys that are no setting stay as they
    are.
    """
    renamed = {}
    for key, value in stored.items():
        path = f"{stage}.{key}" if stage else key
        renamed[current_name(path).rpartition(".")[2]] = (
            current_names(value, path) if isinstance(value, Mapping) else value
        )
    return renamed


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return STAGE.FIELD -> (value in ``stored``, value in ``current``) for the settings that differ, as JSON values.

    A setting that ``stored`` does not have yet counts as its default, which is what the older code did (``BEFORE`` has
    the exceptions; they count if there was fine-tuning). A setting that was renamed counts under today's name. A key
    that is no setting and is missing on one side is None there.
    """
    default = dict(_flat(as_dict(Settings("default"))))
    there, here = dict(_flat(current_names(stored))), dict(_flat(current))
    default |= BEFORE if there.get("finetune.share") else {}
    pairs = {key: (there.get(key, default.get(key)), here.get(key)) for key in sorted(there.keys() | here.keys())}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
