"""The registered ops: each picks its plan, allocates outputs and workspace, and calls the native core once.

Six ops under ``torch.ops.ssdd_ext``: gram, cholesky, solve, solve_backward, krr, krr_backward. All take equal batch
shapes (the public calls broadcast) and are functional. Their outputs' shapes are rules of the inputs' shapes alone.
"""

from .cholesky import cholesky, solve
from .gram import gram
from .krr import explain, krr, krr_mse
from .native import build_info, unavailable
from .register import transformed
from .small import small_krr_mse

__all__ = [
    "build_info", "cholesky", "explain", "gram", "krr", "krr_mse", "small_krr_mse", "solve", "transformed",
    "unavailable",
]  # fmt: skip
