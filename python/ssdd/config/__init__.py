"""Settings: one frozen dataclass per stage, presets that bundle them, and the errors that every room raises.

If the paper (Lee et al., ICLR 2024, arXiv 2310.06511) and its published code differ, the setting is a named option. The
default is the paper's side; :func:`official` switches all of them to the code's side.
"""

from __future__ import annotations

from .choices import METHOD_NAMES, SELECTION_NAMES, STORAGE_NAMES
from .defaults import in_float32
from .deprecated import deprecations
from .errors import Diverged, Event, InputError, Pulse, Report, silent
from .methods import ClpDdConfig, DmConfig, FrepoConfig, KipConfig, RfadConfig
from .parser import (
    UNREADABLE,
    Kind,
    add_settings,
    extract_settings,
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
from .storage import BasesConfig, PyramidConfig
from .stored import current_name, current_names, differences
from .tasks import ClassifierConfig, KdConfig
from .values import VERSION, as_dict, fields, from_dict, replace_fields, versions
from .words import duration

__all__ = [
    "FINETUNE",
    "OFFICIAL",
    "METHOD_NAMES",
    "PRESETS",
    "PUBLISHED",
    "SELECTION_NAMES",
    "STORAGE_NAMES",
    "UNREADABLE",
    "VERSION",
    "AugmentConfig",
    "BasesConfig",
    "ClassifierConfig",
    "ClpDdConfig",
    "DistillConfig",
    "DmConfig",
    "Diverged",
    "EvaluateConfig",
    "Event",
    "FinetuneConfig",
    "FrepoConfig",
    "InputError",
    "KdConfig",
    "Kind",
    "KipConfig",
    "PretrainConfig",
    "PyramidConfig",
    "Pulse",
    "Report",
    "RfadConfig",
    "Setting",
    "Settings",
    "StudentConfig",
    "TeacherConfig",
    "add_settings",
    "as_dict",
    "current_name",
    "current_names",
    "departures",
    "deprecations",
    "differences",
    "duration",
    "fields",
    "from_dict",
    "extract_settings",
    "new_parser",
    "official",
    "plain",
    "in_float32",
    "preset",
    "read_settings_file",
    "readable",
    "replace_fields",
    "settings_reference",
    "silent",
    "stage_sentence",
    "unknown_setting",
    "versions",
    "with_settings",
]
