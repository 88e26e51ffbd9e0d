"""Shared code of the scripts: their arguments, the place of results, and the form of a result file.

The timing itself is ``ssdd_ext.bench``'s, so that a user measures with the same code that made the tables here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssdd_ext import _C
from ssdd_ext.bench import machine

RESULTS = Path(__file__).parent / "results"


def parser(doc: str | None, seconds: float) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every script; ``seconds`` is the time of one row beyond its five rounds."""
    p = argparse.ArgumentParser(
        description=(doc or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    p.add_argument("--seconds", type=float, default=seconds, help="a row takes no new round after this")
    p.add_argument("--repeats", type=int, default=20, help="most samples of each")
    p.add_argument("--quick", action="store_true", help="tiny sizes, nothing written: shows that the script runs")
    p.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    p.add_argument("--instruction-set", choices=("generic", "avx2", "avx512"), help="instead of the best of this CPU")
    return p


def apply_arguments(a: argparse.Namespace) -> argparse.Namespace:
    """Apply the arguments that concern the process, and return them."""
    # After torch.set_num_threads, even with an unchanged number, torch's LU of a batch of larger matrices fails or
    # hangs with MKL (seen with torch 2.13: [2, 300, 300] in double).
    if a.threads != torch.get_num_threads():
        torch.set_num_threads(a.threads)
    if a.instruction_set:
        _C.force_instruction_set(a.instruction_set)
    if a.quick:
        a.seconds, a.repeats = 0.0, 2
    return a


def arguments(doc: str | None, seconds: float, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of a script that has none of its own."""
    return apply_arguments(parser(doc, seconds).parse_args(argv))


def write(a: argparse.Namespace, what: str, rows: list[dict[str, Any]]) -> Path | None:
    """Write rows to ``<device>_<what>_<machine>.json``, which is committed; nothing with ``--quick``."""
    if a.quick:
        return None
    a.results.mkdir(parents=True, exist_ok=True)
    path: Path = a.results / f"{a.device}_{what}_{machine.slug(a.device)}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"wrote {path.name}")
    return path
