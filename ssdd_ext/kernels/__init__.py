"""Kernel functions as small immutable objects.

A kernel has hyper-parameters, their checks, and its formula in plain PyTorch. The native version of the same name, if
there is one, is in ``csrc/``. CONTRIBUTING.md lists what a new kernel needs.
"""

from .base import ARD, Combination, Kernel, Product, Scaled, Sum, for_matrices, match_parameter
from .distances import RBF, Laplace, Matern, RationalQuadratic, Stationary, squared_distances
from .multiply import matmul
from .networks import NNGP, NTK, ArcCosine
from .products import Cosine, Linear, Polynomial

SHIPPED = (Linear, RBF, Laplace, Matern, RationalQuadratic, Polynomial, Cosine, ArcCosine, NNGP, NTK)
COMBINATIONS = (Sum, Product, Scaled, ARD)
KERNELS: dict[str, type[Kernel]] = {kernel.name: kernel for kernel in (*SHIPPED, *COMBINATIONS)}

__all__ = [
    "ARD",
    "COMBINATIONS",
    "KERNELS",
    "NNGP",
    "NTK",
    "RBF",
    "SHIPPED",
    "ArcCosine",
    "Combination",
    "Cosine",
    "Kernel",
    "Laplace",
    "Linear",
    "Matern",
    "Polynomial",
    "Product",
    "RationalQuadratic",
    "Scaled",
    "Stationary",
    "Sum",
    "for_matrices",
    "match_parameter",
    "matmul",
    "squared_distances",
]
