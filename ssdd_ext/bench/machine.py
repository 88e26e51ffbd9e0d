"""The machine of a measurement: versions, processor, instruction sets, threads."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

from ..api import build_info


def cpu_model() -> str:
    """Return the processor's name from Linux, or else from Python, with family and model if they are known.

    Virtual machines often report only ``AMD EPYC``; family 25 is then Zen 3 or 4, family 26 Zen 5.
    """
    path = Path("/proc/cpuinfo")
    info = path.read_text() if path.exists() else ""
    name, family, model = (
        found.group(1).strip() if (found := re.search(rf"^{field}\s*:\s*(.+)$", info, re.MULTILINE)) else ""
        for field in ("model name", "cpu family", "model")
    )
    name = name or platform.processor() or platform.machine()
    return f"{name} (family {family}, model {model})" if family and model else name


def version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Return the versions of all software that can change a measurement."""
    known = {
        # The running package, which need not be the installed one. A room must not import the package's __init__.
        "ssdd_ext": sys.modules["ssdd_ext"].__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }
    optional = {"scikit-learn": version_of("scikit-learn"), "gpytorch": version_of("gpytorch")}
    return known | {n: v for n, v in optional.items() if v != "not installed"}


def instruction_sets() -> dict[str, str]:
    """Return the instruction set that each library uses on this processor."""
    return {"ssdd_ext": build_info()["instruction_set"], "torch": torch.backends.cpu.get_cpu_capability()}


def describe(device: str) -> dict[str, Any]:
    """Return the part of a row that describes the machine; ``instruction_sets`` by library."""
    row: dict[str, Any] = {
        "versions": versions(),
        "cpu": cpu_model(),
        "instruction_sets": instruction_sets(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        row["gpu"] = torch.cuda.get_device_name(device)
    return row


def slug(device: str = "cpu") -> str:
    """Return a file name for this machine, such as ``amd-epyc-avx2``."""
    name = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else f"{cpu_model()} {instruction_sets()['ssdd_ext']}"
    )
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)|@.*|\bcpu\b|processor", "", name.lower())).strip("-")
