"""Kernel functions as small immutable objects.

A kernel has hyper-parameters, their checks, and its formula in plain PyTorch. The native version of the same name, if
there is one, is in ``csrc/``. CONTRIBUTING.md lists what a new kernel needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .base import ARD, Combination, Kernel, Number, Product, Scaled, Sum, for_matrices, match_parameter
from .distances import RBF, Laplace, Matern, RationalQuadratic, Stationary, one_norms, squared_distances
from .multiply import matmul, mirrored
from .networks import NNGP, NTK, ArcCosine
from .products import Cosine, Linear, Polynomial

SHIPPED = (Linear, RBF, Laplace, Matern, RationalQuadratic, Polynomial, Cosine, ArcCosine, NNGP, NTK)
COMBINATIONS = (Sum, Product, Scaled, ARD)
KERNELS: dict[str, type[Kernel]] = {kernel.name: kernel for kernel in (*SHIPPED, *COMBINATIONS)}


def from_spec(spec: str, parameters: Sequence[Number]) -> Kernel:
    """Return the kernel with this ``Kernel.spec`` and these hyper-parameters."""
    name, *texts = spec.split(":")
    kind = KERNELS[name]
    constants, values = iter(texts), iter(parameters)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in kind.constants:
            text = next(constants)
            arguments[field.name] = float(text) if "." in text else int(text)
        else:
            arguments[field.name] = next(values)
    return kind(**arguments)


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
    "Number",
    "Polynomial",
    "Product",
    "RationalQuadratic",
    "Scaled",
    "Stationary",
    "Sum",
    "for_matrices",
    "from_spec",
    "match_parameter",
    "matmul",
    "mirrored",
    "one_norms",
    "squared_distances",
]
