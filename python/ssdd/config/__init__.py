"""Settings: one frozen dataclass a stage, a preset that bundles them, and the errors every room raises.

Where the paper (Lee et al., ICLR 2024, arXiv 2310.06511) and its published code part, the setting is a
named option. The default is the paper's side; :func:`official` turns every one of them to the code's.
"""

from __future__ import annotations

from .change import VERSION, as_dict, from_dict, versions, with_settings
from .errors import Diverged, Event, InputError, Report, silent
from .presets import OFFICIAL, PRESETS, departures, official, preset
from .settings import (
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    FinetuneConfig,
    PretrainConfig,
    Settings,
    StudentConfig,
    TeacherConfig,
)
from .stored import current_name, current_names, differences

__all__ = [
    "OFFICIAL",
    "PRESETS",
    "VERSION",
    "AugmentConfig",
    "DistillConfig",
    "Diverged",
    "EvaluateConfig",
    "FinetuneConfig",
    "Event",
    "InputError",
    "Settings",
    "PretrainConfig",
    "Report",
    "StudentConfig",
    "TeacherConfig",
    "as_dict",
    "current_name",
    "current_names",
    "departures",
    "differences",
    "from_dict",
    "official",
    "preset",
    "silent",
    "versions",
    "with_settings",
]
