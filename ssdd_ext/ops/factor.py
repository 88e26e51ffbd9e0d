"""The gradient of a Cholesky factor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import full_precision
from ..kernels import matmul


def factor_backward(factor: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient to the symmetric matrix, from the factor and the gradient to the factor; differentiable.

    Abar = L^-T Phi(L^T Lbar) L^-1, symmetrised; Phi takes the lower triangle and halves the diagonal.
    """
    with full_precision(grad):
        phi = matmul(factor.mT, grad).tril()
        phi = phi - 0.5 * torch.diag_embed(phi.diagonal(dim1=-2, dim2=-1))
        half = torch.linalg.solve_triangular(factor.mT, phi, upper=True)
        bar = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
        return 0.5 * (bar + bar.mT)
