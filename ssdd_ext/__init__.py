"""ssdd_ext: kernel ridge regression for PyTorch, with gradients, on its own C++ and CUDA core."""

from .api import (
    Fit,
    Info,
    build_info,
    cholesky,
    cholesky_solve,
    explain,
    fit,
    gram,
    krr,
    krr_from_gram,
    krr_mse,
    krr_mse_from_gram,
)
from .checks import FactorizationError
from .kernels import RBF, Kernel, Linear
from .ridge import Ridge

__version__ = "0.1.0"

__all__ = [
    "RBF",
    "FactorizationError",
    "Fit",
    "Info",
    "Kernel",
    "Linear",
    "Ridge",
    "__version__",
    "build_info",
    "cholesky",
    "cholesky_solve",
    "explain",
    "fit",
    "gram",
    "krr",
    "krr_from_gram",
    "krr_mse",
    "krr_mse_from_gram",
]
