"""Constants of an H100 SXM, used by the plan (``gpu.py``) and the floors (``benchmarks/gpu/floors.py``).

Measured constants are medians of ``benchmarks/results/gpu-h100`` at the clock that the device reports;
``tests/ext/test_plan.py`` compares each with the committed file. Data-sheet constants are limits that no kernel
exceeds, and the floors use them.
"""

from __future__ import annotations

# --- data sheet ------------------------------------------------------------------------------------------------------

SHEET_BANDWIDTH = 3.35e12  # bytes per second
SHEET_TENSOR = 165e12  # FLOPs per second of fp32 products as three TF32 products
SHEET_MMA = 104e12  # the same through mma.sync, which reaches 63% of the tensor cores' rate
SHEET_FP32 = 67e12  # a multiply-add counts as two
MULTIPROCESSORS = 132
SHARED = 227 << 10  # bytes of shared memory per block

# --- measured --------------------------------------------------------------------------------------------------------

CLOCK = 1.98e9
BANDWIDTH = 2.44e12  # bytes read and written per second by a copy
LAUNCH = 1.37e-6  # seconds from one kernel of a graph to the next

# FLOPs per second of products, all multiprocessors busy.
TENSOR = 52e12  # fp32, 4096^3
ONE_PASS = 175e12  # 16-bit features, 4096^3
FP64 = 8.3e12  # 1024^3

# Cycles.
PIVOT = 386.0  # of a factorisation in one warp or one block, with its part of the strip's update and panel
TILE_COLUMN = 40700.0  # 64 columns of the tiled factorisation, one after the other
SOLVE_TILE = 14300.0  # one tile of the tiled solve, one after the other: the same for 64 and 512 columns
