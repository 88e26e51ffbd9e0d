"""Scores of generated images, in the features of a classifier that was trained separately on real images."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(x: Tensor, y: Tensor) -> float:
    """Return the Fréchet distance of two Gaussians with the moments of ``x`` [N, D] and ``y`` [M, D].

    |m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^½), in float64; the trace of the root is the sum of the roots of the
    eigenvalues of C_x^½ C_y C_x^½.
    """
    (m_x, c_x), (m_y, c_y) = ((part.double().mean(0), part.double().T.cov()) for part in (x, y))
    values, vectors = torch.linalg.eigh(c_x)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c_y @ root).clamp_min(0).sqrt().sum()
    return float((m_x - m_y).square().sum() + c_x.trace() + c_y.trace() - 2 * cross)


def density_and_coverage(generated: Tensor, real: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage (Naeem et al., 2020) of ``generated`` [N, D] against ``real`` [M, D].

    The ball of a real point reaches to its k-th nearest real neighbour. Density is the number of balls that a generated
    point is in, divided by k, on average; coverage is the share of balls with a generated point in them. Real images
    in place of generated ones give about 1 and 1 - 2^-k.
    """
    generated, real = generated.double(), real.double()
    radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values  # the nearest one is the point itself
    inside = torch.cdist(real, generated) < radius[:, None]
    return float(inside.sum(0).double().mean() / k), float(inside.any(1).double().mean())
