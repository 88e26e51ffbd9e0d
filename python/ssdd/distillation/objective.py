"""What an outer step minimises: equation 5 of the paper, and the named variants of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import ssdd_ext

from ..config import DistillConfig
from ..models import Network, frozen, in_chunks


def outer_loss(
    networks: Sequence[Network], x_s: Tensor, y_s: Tensor, x_b: Tensor, y_b: Tensor, config: DistillConfig
) -> Tensor:
    """The error, on a real batch, of kernel ridge regression from the distilled pairs: the mean over ``networks``.

    x_s [S, C, H, W], x_b [Q, C, H, W]: network input; y_s [S, C], y_b [Q, C]. A scalar that differentiates to x_s
    (through the features) and y_s only: nothing flows to the networks' weights or through the real batch. Several
    networks are solved as one batch. ``config.loss`` picks the error: "mse" is equation 5.
    """
    features = [frozen(network) for network in networks]
    f_s = torch.stack([f(x_s) for f in features])  # [B, S, D]
    f_b = torch.stack([in_chunks(f, x_b) for f in features])  # [B, Q, D]
    kernel, ridge = ssdd_ext.Linear(bias=config.bias), ssdd_ext.Ridge.trace(config.ridge)
    # "nan": a failed factorisation and a loss that overflows end the run by the same road.
    if config.loss == "mse":
        return ssdd_ext.krr_mse(f_s, y_s, f_b, y_b, kernel=kernel, ridge=ridge, on_failure="nan").mean()
    predicted = ssdd_ext.krr(f_s, y_s, f_b, kernel=kernel, ridge=ridge, on_failure="nan")  # [B, Q, C]
    return prediction_loss(predicted, y_b, config)


def prediction_loss(predicted: Tensor, wanted: Tensor, config: DistillConfig) -> Tensor:
    """``config.loss`` between predictions [..., Q, C] and representations [Q, C], a scalar.

    "mse": mean squared error. "cosine": 1 - cosine of the two vectors. "cross-entropy": of softmax(prediction / τ)
    against softmax(representation / τ), times τ² so that the gradient keeps its size, less the entropy of the latter
    so that 0 is a perfect prediction.
    """
    wanted = wanted.expand_as(predicted)
    if config.loss == "cosine":
        return (1 - F.cosine_similarity(predicted, wanted, dim=-1)).mean()
    if config.loss == "cross-entropy":
        t = config.temperature
        said, truth = F.log_softmax(predicted / t, -1), F.log_softmax(wanted / t, -1)
        return t * t * (truth.exp() * (truth - said)).sum(-1).mean()
    return F.mse_loss(predicted, wanted)


def total_variation(pixels: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, down plus across. pixels: [S, C, H, W]; a scalar."""
    return (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean() + (pixels[..., 1:] - pixels[..., :-1]).abs().mean()


def realism(x_s: Tensor, initial: Tensor, config: DistillConfig) -> Tensor:
    """What keeps X_s [S, C, H, W] looking like images, a scalar: total variation, and the squared distance to the
    real images ``initial`` it started from, each with its weight."""
    return config.tv_weight * total_variation(x_s) + config.init_weight * (x_s - initial).square().mean()
