"""Self-supervised dataset distillation (KRR-ST, Lee et al., ICLR 2024) on the backend ``ssdd_ext``.

Each verb of the command line is one call here: :func:`demo`, :func:`train_teacher`, :func:`distill`,
:func:`pretrain`, :func:`evaluate`, :func:`contact_sheet` (``show``), :func:`info`.
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

# After the check above, on purpose: these need what it looks for. The functions `distill` and `evaluate` take the
# names of the rooms they come from; the rooms stay reachable as `from ssdd.distill import ...`.
from .artifact import DistilledSet, Preprocessing, export, read_published  # noqa: E402
from .checkpoint import Checkpoints, Stopped  # noqa: E402
from .config import (  # noqa: E402
    PRESETS,
    VERSION,
    Diverged,
    InputError,
    Preset,
    official,
    preset,
    with_settings,
)
from .data import ImageSet, load_images  # noqa: E402
from .distill import Distillation, distill  # noqa: E402
from .evaluate import Cell, compare, evaluate, pretrain  # noqa: E402
from .models import Network, build  # noqa: E402
from .report import contact_sheet, demo, info  # noqa: E402
from .select import baseline, kmeans_medoids, random_subset  # noqa: E402
from .teachers import (  # noqa: E402
    Representations,
    Teacher,
    read_representations,
    represent,
    train_teacher,
)

__version__ = VERSION

__all__ = [
    "PRESETS",
    "Cell",
    "Checkpoints",
    "DistilledSet",
    "Distillation",
    "Diverged",
    "ImageSet",
    "InputError",
    "Network",
    "Preprocessing",
    "Preset",
    "Representations",
    "Stopped",
    "Teacher",
    "__version__",
    "baseline",
    "build",
    "compare",
    "contact_sheet",
    "demo",
    "distill",
    "evaluate",
    "export",
    "info",
    "kmeans_medoids",
    "load_images",
    "official",
    "preset",
    "pretrain",
    "random_subset",
    "read_published",
    "read_representations",
    "represent",
    "train_teacher",
    "with_settings",
]
