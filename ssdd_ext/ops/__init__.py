"""The two fast ways to run a call: registered ops on the native core, and planned PyTorch (``planned``).

There are six ops under ``torch.ops.ssdd_ext``: gram, cholesky, solve, solve_backward, krr, krr_backward. Each picks its
plan, allocates outputs and workspace, and calls the native core once. All take equal batch shapes (the public calls
broadcast) and are functional. The shapes of their outputs depend on the inputs' shapes alone.

The functions here, those of ``planned`` and those of ``reference`` have the same names and arguments.
"""

from . import planned
from .any_gram import gram
from .cholesky import cholesky, cholesky_solve, factored_solve
from .eager import eager_krr
from .eager_gram import eager_cholesky, eager_from_gram, eager_gram
from .fitted import Fitted, eager_fit
from .gaussian import log_determinant, quadratic
from .krr import explain, krr, krr_mse
from .native import angle_layers, build_info, gpu, unavailable
from .small import plan_small, small_krr_mse

__all__ = [
    "Fitted",
    "angle_layers",
    "build_info",
    "cholesky",
    "cholesky_solve",
    "eager_cholesky",
    "eager_fit",
    "eager_from_gram",
    "eager_gram",
    "eager_krr",
    "explain",
    "factored_solve",
    "gpu",
    "gram",
    "krr",
    "log_determinant",
    "krr_mse",
    "planned",
    "plan_small",
    "quadratic",
    "small_krr_mse",
    "unavailable",
]
