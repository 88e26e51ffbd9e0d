"""Estimators with scikit-learn's interface: NumPy in, NumPy out, solved by this package.

This package needs scikit-learn 1.6 or later. The rest of ``ssdd_ext`` does not.
"""

try:
    import sklearn as _library  # this package is ssdd_ext.sklearn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "ssdd_ext.sklearn needs scikit-learn, which is not installed: pip install scikit-learn"
    ) from error
try:
    from sklearn.utils.validation import validate_data as _newest  # noqa: F401 (the newest of the functions used here)
except ImportError as error:
    raise ImportError(
        f"ssdd_ext.sklearn needs scikit-learn 1.6 or later, this is {_library.__version__}: "
        f"pip install --upgrade scikit-learn"
    ) from error

from .kernel_ridge import KernelRidge
from .selection import KernelRidgeCV, RidgeCV

__all__ = ["KernelRidge", "KernelRidgeCV", "RidgeCV"]
