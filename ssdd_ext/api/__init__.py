"""The public calls: they check their arguments, pick a backend and run it."""

from .call import Info
from .classify import krr_cross_entropy
from .fit import Fit, fit
from .from_gram import krr_from_gram, krr_mse_from_gram
from .gram import cholesky, cholesky_solve, gram
from .path import RidgePath, krr_path
from .posterior import log_marginal_likelihood
from .regression import build_info, explain, krr, krr_mse

__all__ = [
    "Fit",
    "Info",
    "RidgePath",
    "build_info",
    "cholesky",
    "cholesky_solve",
    "explain",
    "fit",
    "gram",
    "krr",
    "krr_cross_entropy",
    "krr_from_gram",
    "krr_mse",
    "krr_mse_from_gram",
    "krr_path",
    "log_marginal_likelihood",
]
