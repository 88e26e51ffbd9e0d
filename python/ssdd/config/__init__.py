"""Settings: one frozen dataclass a stage, a preset that bundles them, and the errors every room raises.

Where the paper (Lee et al., ICLR 2024, arXiv 2310.06511) and its published code part, the setting is a
named option. The default is the paper's side; :func:`official` turns every one of them to the code's.
"""

from __future__ import annotations

from .errors import Diverged, Event, InputError, Pulse, Report, silent
from .parser import (
    Kind,
    add_settings,
    given_settings,
    new_parser,
    read_settings_file,
    readable,
    unknown_setting,
    with_settings,
)
from .presets import FINETUNE, OFFICIAL, PRESETS, PUBLISHED, departures, official, preset
from .reference import Setting, plain, settings_reference, stage_sentence
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
from .tasks import ClassifierConfig, KdConfig
from .values import VERSION, as_dict, fields, from_dict, versions

__all__ = [
    "FINETUNE",
    "OFFICIAL",
    "PRESETS",
    "PUBLISHED",
    "VERSION",
    "AugmentConfig",
    "ClassifierConfig",
    "DistillConfig",
    "Diverged",
    "EvaluateConfig",
    "Event",
    "FinetuneConfig",
    "InputError",
    "KdConfig",
    "Kind",
    "PretrainConfig",
    "Pulse",
    "Report",
    "Setting",
    "Settings",
    "StudentConfig",
    "TeacherConfig",
    "add_settings",
    "as_dict",
    "current_name",
    "current_names",
    "departures",
    "differences",
    "fields",
    "from_dict",
    "given_settings",
    "new_parser",
    "official",
    "plain",
    "preset",
    "read_settings_file",
    "readable",
    "settings_reference",
    "silent",
    "stage_sentence",
    "unknown_setting",
    "versions",
    "with_settings",
]
