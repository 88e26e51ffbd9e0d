"""Kernels by scikit-learn's names and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.metrics.pairwise import pairwise_kernels
from torch import Tensor

from ..api import gram
from ..kernels import RBF, Cosine, Kernel, Linear, Polynomial
from .arrays import to_torch

NAMES = ("linear", "rbf", "poly", "polynomial", "laplacian", "cosine", "chi2", "precomputed")
INDEFINITE = ("sigmoid", "additive_chi2")
KernelLike = str | Kernel | Callable[..., float]


@dataclass(frozen=True)
class KernelFunction:
    """A kernel as the estimators' arguments describe it.

    ``native``: the kernel object of this package, or None; then scikit-learn computes the Gram matrix.
    """

    kernel: KernelLike
    gamma: float | None = None
    degree: float = 3
    coef0: float = 1
    params: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.kernel, Kernel) or callable(self.kernel):
            return
        if self.kernel in INDEFINITE:
            raise ValueError(
                f"kernel: {self.kernel!r} is not positive definite, so a ridge regression with it has no meaning; "
                f"use one of {', '.join(NAMES)}"
            )
        if self.kernel not in NAMES:
            raise ValueError(
                f"kernel: expected one of {', '.join(NAMES)}, a callable, or a kernel of ssdd_ext such as RBF(1.0), "
                f"got {self.kernel!r}"
            )

    @property
    def precomputed(self) -> bool:
        """True if the samples are rows of a Gram matrix."""
        return isinstance(self.kernel, str) and self.kernel == "precomputed"

    def native(self, features: int) -> Kernel | None:
        """Return the kernel object that computes this kernel of dense samples."""
        if isinstance(self.kernel, Kernel):
            return self.kernel
        if self.kernel == "linear":
            return Linear()
        gamma = 1.0 / features if self.gamma is None else self.gamma
        if self.kernel == "rbf" and 0 < gamma < math.inf:
            return RBF(1.0 / math.sqrt(2.0 * gamma))
        if self.kernel == "cosine":
            return Cosine()
        if self.kernel in ("poly", "polynomial") and 0 < gamma < math.inf and 0 <= self.coef0 < math.inf:
            degree = int(self.degree)
            return Polynomial(degree, float(gamma), float(self.coef0)) if degree == self.degree and degree > 0 else None
        return None

    def features(self, x: Any) -> Tensor | None:
        """Return the features [S, D (+1)] whose inner products are the kernel, or None."""
        if scipy.sparse.issparse(x):
            return None
        kernel = self.native(x.shape[1])
        if not isinstance(kernel, Linear) or isinstance(kernel.scale, Tensor) or isinstance(kernel.bias, Tensor):
            return None
        x = to_torch(x) * math.sqrt(kernel.scale) if kernel.scale != 1 else to_torch(x)
        return torch.cat((x, x.new_full((x.shape[0], 1), math.sqrt(kernel.bias))), 1) if kernel.bias else x

    def gram(self, x: Any, z: Any = None) -> Tensor:
        """Return the Gram matrix [S, S], or [S, Q] with ``z``; of a precomputed kernel, ``x`` itself."""
        if self.precomputed:
            return to_torch(x.toarray() if scipy.sparse.issparse(x) else x)
        sparse = scipy.sparse.issparse(x) or scipy.sparse.issparse(z)
        native = None if sparse else self.native(x.shape[1])
        if native is not None:
            return gram(to_torch(x), None if z is None else to_torch(z), kernel=native)
        if isinstance(self.kernel, Kernel):
            raise TypeError("X: expected a dense array for a kernel of ssdd_ext, got a sparse one; use X.toarray()")
        if callable(self.kernel):
            params = self.params or {}
        else:
            params = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}
        k = pairwise_kernels(x, z, metric=self.kernel, filter_params=True, **params)
        return to_torch(np.asarray(k, dtype=x.dtype))
