"""Self-supervised dataset distillation (KRR-ST, Lee et al., ICLR 2024) on the backend ``ssdd_ext``.

Each verb of the command line is one call here: :func:`demo`, :func:`train_teacher`, :func:`distill`,
:func:`pretrain`, :func:`evaluate`, :func:`train_classifier`, :func:`distil_knowledge` (``kd``), :func:`run_study`,
:func:`write_report` (``report``), :func:`contact_sheet` (``show``), :func:`export`, :func:`push`,
:func:`read_published` (``import``), :func:`info`. The command line uses nothing but these names and its own settings.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

# Import name -> name to install: what the base installation (the backend's torch, numpy, scipy) does not bring.
_EXTRA = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "rich": "rich",
    "jsonargparse": "jsonargparse",
    "docstring_parser": "docstring_parser",
    "yaml": "PyYAML",
    "matplotlib": "matplotlib",
}
_missing = [name for module, name in _EXTRA.items() if find_spec(module) is None]
if _missing:
    raise ImportError(
        f"ssdd needs {', '.join(_missing)}, which the base installation leaves out; "
        "install what is missing with: pip install 'ssdd[distill]'"
    )

# The settings are light. Every other room is imported when one of its names is first used, so that the command line
# answers before torch is loaded.
from .config import (  # noqa: E402
    FINETUNE,
    PRESETS,
    VERSION,
    AugmentConfig,
    ClassifierConfig,
    DistillConfig,
    Diverged,
    EvaluateConfig,
    FinetuneConfig,
    InputError,
    KdConfig,
    PretrainConfig,
    Settings,
    StudentConfig,
    TeacherConfig,
    official,
    preset,
    with_settings,
)

if TYPE_CHECKING:
    from .artifact import (
        EXPORT_FORMS,
        DistilledSet,
        Preprocessing,
        ddranking_constants,
        export,
        push,
        read_labelled,
        read_published,
        read_scores,
        write_card,
    )
    from .checkpoint import Checkpoints, Stopped, interruptible
    from .data import DEVICES, ImageSet, cache_directory, choose_device, convert_images, load_images, load_target
    from .distillation import Distillation, Job, check_before_training, distill, needs_teacher, target_size
    from .evaluation import (
        Cell,
        check_targets,
        evaluate,
        evaluate_on,
        evaluate_teacher,
        finetune,
        pretrain,
        read_out,
        recipe_of,
        save_backbone,
        why_no_probe,
    )
    from .models import Network, build, seeded, student
    from .parallel import PARALLEL_MODES, Processes, ProcessLost, join_processes, local_rank, world_size
    from .report import contact_sheet, demo, info, write_page, write_report
    from .selection import kmeans_medoids, random_subset
    from .studies import (
        Demonstration,
        Plan,
        StudyEstimate,
        baseline,
        compare,
        estimate_study,
        find_study,
        read_plan,
        run_study,
        shipped_studies,
    )
    from .teachers import (
        Classifier,
        Representations,
        Teacher,
        check_kd,
        check_labels,
        distil_knowledge,
        read_representations,
        represent,
        train_classifier,
        train_teacher,
        write_representations,
    )

__version__ = VERSION

_ROOMS = {
    "artifact": (
        "EXPORT_FORMS",
        "DistilledSet",
        "Preprocessing",
        "ddranking_constants",
        "export",
        "push",
        "read_labelled",
        "read_published",
        "read_scores",
        "write_card",
    ),
    "checkpoint": (
        "Checkpoints",
        "Stopped",
        "interruptible",
    ),
    "data": (
        "DEVICES",
        "ImageSet",
        "cache_directory",
        "choose_device",
        "convert_images",
        "load_images",
        "load_target",
    ),
    "distillation": (
        "Distillation",
        "Job",
        "check_before_training",
        "distill",
        "needs_teacher",
        "target_size",
    ),
    "evaluation": (
        "Cell",
        "check_targets",
        "evaluate",
        "evaluate_on",
        "evaluate_teacher",
        "finetune",
        "pretrain",
        "read_out",
        "recipe_of",
        "save_backbone",
        "why_no_probe",
    ),
    "models": (
        "Network",
        "build",
        "seeded",
        "student",
    ),
    "parallel": (
        "PARALLEL_MODES",
        "Processes",
        "ProcessLost",
        "join_processes",
        "local_rank",
        "world_size",
    ),
    "report": (
        "contact_sheet",
        "demo",
        "info",
        "write_page",
        "write_report",
    ),
    "selection": (
        "kmeans_medoids",
        "random_subset",
    ),
    "studies": (
        "Demonstration",
        "Plan",
        "StudyEstimate",
        "baseline",
        "compare",
        "estimate_study",
        "find_study",
        "read_plan",
        "run_study",
        "shipped_studies",
    ),
    "teachers": (
        "Classifier",
        "Representations",
        "Teacher",
        "check_kd",
        "check_labels",
        "distil_knowledge",
        "read_representations",
        "represent",
        "train_classifier",
        "train_teacher",
        "write_representations",
    ),
}
"""Room -> the names that the package offers from it."""

_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the room of ``name`` when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "DEVICES",
    "EXPORT_FORMS",
    "FINETUNE",
    "PRESETS",
    "PARALLEL_MODES",
    "AugmentConfig",
    "Cell",
    "Checkpoints",
    "Classifier",
    "ClassifierConfig",
    "Demonstration",
    "DistillConfig",
    "Distillation",
    "DistilledSet",
    "Diverged",
    "EvaluateConfig",
    "FinetuneConfig",
    "ImageSet",
    "InputError",
    "Job",
    "KdConfig",
    "Network",
    "Plan",
    "Preprocessing",
    "Settings",
    "PretrainConfig",
    "ProcessLost",
    "Processes",
    "Representations",
    "Stopped",
    "StudentConfig",
    "StudyEstimate",
    "Teacher",
    "TeacherConfig",
    "__version__",
    "baseline",
    "build",
    "cache_directory",
    "check_before_training",
    "check_kd",
    "check_labels",
    "check_targets",
    "choose_device",
    "compare",
    "contact_sheet",
    "convert_images",
    "demo",
    "distil_knowledge",
    "distill",
    "evaluate",
    "evaluate_on",
    "evaluate_teacher",
    "ddranking_constants",
    "estimate_study",
    "export",
    "find_study",
    "finetune",
    "info",
    "interruptible",
    "join_processes",
    "kmeans_medoids",
    "load_images",
    "load_target",
    "needs_teacher",
    "official",
    "local_rank",
    "preset",
    "pretrain",
    "push",
    "random_subset",
    "read_out",
    "read_plan",
    "read_labelled",
    "read_published",
    "read_representations",
    "read_scores",
    "recipe_of",
    "represent",
    "run_study",
    "save_backbone",
    "seeded",
    "shipped_studies",
    "student",
    "target_size",
    "train_classifier",
    "train_teacher",
    "why_no_probe",
    "with_settings",
    "world_size",
    "write_card",
    "write_page",
    "write_report",
    "write_representations",
]
