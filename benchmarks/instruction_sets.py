"""One instruction set for both sides of a comparison, and what the libraries really do with it.

torch, oneDNN, MKL and OpenBLAS read their limits from the environment when they are loaded, so :func:`limit` starts
the script again with them. A limit that is set need not be obeyed: :func:`rates` measures the products of both sides.
On AMD processors MKL's products run at the rate of AVX2 with and without its limit.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

LIMITS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "OPENBLAS_CORETYPE": "SkylakeX",
    },
}
ORDER = 768
"""Order of the products that are measured."""


def limit(argv: Sequence[str]) -> None:
    """Start this script again with the limits of ``--isa``, unless they are set; before torch is imported."""
    name = next((argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--isa"), None)
    expected = LIMITS.get(name or "", {})
    if any(os.environ.get(key) != value for key, value in expected.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | expected)


def rates(isa: str | None) -> dict[str, Any]:
    """Return what was set, and the rates of products per thread in 1e9 floating-point operations per second."""
    import torch

    import ssdd_ext

    threads = torch.get_num_threads()
    found: dict[str, Any] = {"set": dict(LIMITS[isa]) if isa else {}}
    for dtype in (torch.float32, torch.float64):
        a, b = torch.randn(ORDER, ORDER, dtype=dtype), torch.randn(ORDER, ORDER, dtype=dtype)
        for name, run in (("torch", lambda a=a, b=b: a @ b.mT), ("ssdd_ext", lambda a=a, b=b: ssdd_ext.gram(a, b))):
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = round(
                2e-9 * ORDER**3 / threads / _least(run, threads)
            )
    return found


def _least(run: Callable[[], Any], threads: int) -> float:
    """Return the least time of several runs; of one thread the processor time, which other load does not change."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    least = float("inf")
    for _ in range(8):
        start = clock()
        run()
        least = min(least, clock() - start)
    return least
