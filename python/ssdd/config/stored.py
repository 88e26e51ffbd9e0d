"""Settings that were kept: read under the names of today, and compared with those at hand.

The one rule for runs, checkpoints, artifacts, studies' cells and studies' files.
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
"""The settings of version 0.1 that have another name now."""

BEFORE = {"finetune.normalise": "source", "finetune.last_batch": "dropped"}
"""Settings whose default is not what the code did that had them not."""


def current_name(key: str) -> str:
    """The name today of the setting that was once called ``key`` (STAGE.FIELD)."""
    return RENAMED.get(key, key)


def current_names(stored: Mapping[str, Any], stage: str = "") -> dict[str, Any]:
    """``stored``, settings as an earlier version may have kept them, with each field under its name of today.

    ``stage``: whose fields ``stored`` holds (default: it holds stages). What is no setting stays as it is.
    """
    found = {}
    for key, value in stored.items():
        path = f"{stage}.{key}" if stage else key
        found[current_name(path).rpartition(".")[2]] = (
            current_names(value, path) if isinstance(value, Mapping) else value
        )
    return found


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """STAGE.FIELD -> (what stands in ``stored``, what in ``wanted``), if the two differ; values as JSON has them.

    A setting that is younger than ``stored`` does not count if it has its default, which is what the older code did
    (``BEFORE`` has the exceptions; they count if there was fine-tuning). A setting that was renamed counts under its
    name of today. What is no setting, and missing in one of them, is None there.
    """
    default = dict(_flat(as_dict(Settings("default"))))
    there, here = dict(_flat(current_names(stored))), dict(_flat(wanted))
    default |= BEFORE if there.get("finetune.share") else {}
    pairs = {key: (there.get(key, default.get(key)), here.get(key)) for key in sorted(there.keys() | here.keys())}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
