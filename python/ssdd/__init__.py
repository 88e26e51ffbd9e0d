"""Self-supervised dataset distillation (KRR-ST, Lee et al., ICLR 2024) on the backend ``ssdd_ext``.

Each verb of the command line is one call here: :func:`demo`, :func:`train_teacher`, :func:`distill`,
:func:`pretrain`, :func:`evaluate`, :func:`run_study`, :func:`contact_sheet` (``show``), :func:`export`,
:func:`read_published` (``import``), :func:`info`. The command line uses nothing but these names and its own settings.
"""

from __future__ import annotations

from importlib.util import find_spec

# Import name -> name to install: what the base installation (the backend's torch, numpy, scipy) does not bring.
_EXTRA = {
    "sklearn": "scikit-learn", "PIL": "pillow", "safetensors": "safetensors", "rich": "rich", "typer": "typer",
    "matplotlib": "matplotlib",
}  # fmt: skip
_missing = [name for module, name in _EXTRA.items() if find_spec(module) is None]
if _missing:
    raise ImportError(
        f"ssdd needs {', '.join(_missing)}, which the base installation leaves out; "
        "install what is missing with: pip install 'ssdd[distill]'"
    )

# After the check above, on purpose: these need what it looks for.
from .artifact import FORMS, DistilledSet, Preprocessing, export, read_published, read_scores  # noqa: E402
from .checkpoint import Checkpoints, Stopped, interruptible  # noqa: E402
from .config import (  # noqa: E402
    PRESETS,
    VERSION,
    AugmentConfig,
    DistillConfig,
    Diverged,
    EvaluateConfig,
    FinetuneConfig,
    InputError,
    Preset,
    PretrainConfig,
    StudentConfig,
    TeacherConfig,
    official,
    preset,
    with_settings,
)
from .data import DEVICES, ImageSet, cache_directory, chosen_device, load_images  # noqa: E402
from .distillation import Distillation, Job, check_before_training, distill  # noqa: E402
from .evaluation import Cell, evaluate, evaluate_teacher, finetune, pretrain, save_backbone, why_no_probe  # noqa: E402
from .models import Network, build, seeded, student  # noqa: E402
from .parallel import WAYS, Processes, ProcessLost, joined, place, world_size  # noqa: E402
from .report import contact_sheet, demo, info, write_page  # noqa: E402
from .selection import kmeans_medoids, random_subset  # noqa: E402
from .studies import Demonstration, Plan, baseline, compare, read_plan, run_study  # noqa: E402
from .teachers import (  # noqa: E402
    Representations,
    Teacher,
    read_representations,
    represent,
    train_teacher,
)

__version__ = VERSION

__all__ = [
    "DEVICES",
    "FORMS",
    "PRESETS",
    "WAYS",
    "AugmentConfig",
    "Cell",
    "Checkpoints",
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
    "Network",
    "Plan",
    "Preprocessing",
    "Preset",
    "PretrainConfig",
    "ProcessLost",
    "Processes",
    "Representations",
    "Stopped",
    "StudentConfig",
    "Teacher",
    "TeacherConfig",
    "__version__",
    "baseline",
    "build",
    "cache_directory",
    "check_before_training",
    "chosen_device",
    "compare",
    "contact_sheet",
    "demo",
    "distill",
    "evaluate",
    "evaluate_teacher",
    "export",
    "finetune",
    "info",
    "interruptible",
    "joined",
    "kmeans_medoids",
    "load_images",
    "official",
    "place",
    "preset",
    "pretrain",
    "random_subset",
    "read_plan",
    "read_published",
    "read_representations",
    "read_scores",
    "represent",
    "run_study",
    "save_backbone",
    "seeded",
    "student",
    "train_teacher",
    "why_no_probe",
    "with_settings",
    "world_size",
    "write_page",
]
