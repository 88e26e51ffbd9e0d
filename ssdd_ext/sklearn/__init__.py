"""Estimators with scikit-learn's interface: NumPy in, NumPy out, solved by this package.

This package needs scikit-learn. The rest of ``ssdd_ext`` does not.
"""

try:
    import sklearn as _  # noqa: F401 (the library; this package is ssdd_ext.sklearn)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "ssdd_ext.sklearn needs scikit-learn, which is not installed: pip install scikit-learn"
    ) from error

from .kernel_ridge import KernelRidge
from .selection import KernelRidgeCV, RidgeCV

__all__ = ["KernelRidge", "KernelRidgeCV", "RidgeCV"]
