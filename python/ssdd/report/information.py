"""Information on the installation and on artifacts, as plain values."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any

import torch

import ssdd_ext

from ..artifact import DistilledSet
from ..config import PRESETS, versions


def info(artifact: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return versions, machine and presets; or, given a file, the description of a :class:`DistilledSet`.

    Args:
        artifact: a file of a distilled set. Default: describe the installation.
    """
    if artifact is None:
        return {
            "versions": {**versions(), "ssdd_ext": ssdd_ext.__version__},
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "cuda": torch.cuda.is_available(),
            },
            "presets": list(PRESETS),
        }
    pairs = DistilledSet.load(artifact)
    return {
        "images": list(pairs.images.shape),
        "targets": list(pairs.targets.shape),
        "target_kind": pairs.target_kind,
        "pixels": {"smallest": float(pairs.images.min()), "largest": float(pairs.images.max())},
        "method": pairs.method,
        "source": pairs.source,
        "seed": pairs.seed,
        "support_input": pairs.support_input,
        "preprocessing": asdict(pairs.preprocessing),
        "metrics": pairs.metrics,
        "recipe": pairs.recipe,
        "storage": pairs.storage,
        "licence": pairs.licence,
        "config": pairs.config,
        "versions": pairs.versions,
    }
