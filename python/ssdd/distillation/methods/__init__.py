"""Methods of distillation. A method is one file of this folder; the outer loop is the same for all of them.

``krr_st.py`` is the method "krr-st", a value of ``distill.method``. The file defines a subclass of :class:`Method` and
names it ``METHOD``. Files whose name begins with an underscore are no methods.
"""

from __future__ import annotations

from importlib import import_module

from ...config import METHOD_NAMES
from ..job import Job
from ._base import Method, Step, embed

METHODS: dict[str, type[Method]] = {
    name: import_module(f".{name.replace('-', '_')}", __name__).METHOD for name in METHOD_NAMES
}
"""Name -> class of every method, in alphabetical order."""


def method_of(job: Job) -> Method:
    """The method that ``job.config`` names, for this job."""
    return METHODS[job.config.method](job)


__all__ = ["METHODS", "Method", "Step", "embed", "method_of"]
