"""Choices that stand as files: a new file in the room is a new choice, here and on the command line.

Settings are read before torch is loaded, so a room's choices are the names of its files. Nothing is imported.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules

PACKAGE = Path(__file__).resolve().parents[1]


def choices_in(folder: str, package: Path = PACKAGE) -> tuple[str, ...]:
    """The choices of ``folder`` (such as "selection"): its modules without a leading underscore, in alphabetical order.

    The file ``high_loss.py`` is the choice "high-loss".
    """
    names = (module.name for module in iter_modules([str(package / folder)]))
    return tuple(sorted(name.replace("_", "-") for name in names if not name.startswith("_")))


SELECTION_NAMES = choices_in("selection")
"""The ways to choose real images: :mod:`ssdd.selection`."""

METHOD_NAMES = choices_in("distillation/methods")
"""The methods of distillation: :mod:`ssdd.distillation.methods`."""

STORAGE_NAMES = choices_in("distillation/storage")
"""The kinds of storage of distilled images: :mod:`ssdd.distillation.storage`."""
