"""The outer objective: equation 5 of the paper, and its named variants."""

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
    """Return the error, on a real batch, of kernel ridge regression from the distilled pairs: the mean over
    ``networks``.

    x_s [S, C, H, W], x_b [Q, C, H, W]: network input; y_s [S, C], y_b [Q, C]. The result is a scalar with gradients to
    x_s (through the features) and y_s only; the networks' weights and the real batch get none. Several networks are
    solved as one batch. ``config.loss`` selects the error: "mse" is equation 5.
    """
    features = [frozen(network) for network in networks]
    f_s = torch.stack([f(x_s) for f in features])  # [B, S, D]
    f_b = torch.stack([in_chunks(f, x_b) for f in features])  # [B, Q, D]
    kernel, ridge = ssdd_ext.Linear(bias=config.bias), ssdd_ext.Ridge.trace(config.ridge)
    # "nan": a failed factorisation gives a loss that is not finite, which ends the run as an overflow does.
    if config.loss == "mse":
        return ssdd_ext.krr_mse(f_s, y_s, f_b, y_b, kernel=kernel, ridge=ridge, on_failure="nan").mean()
    predicted = ssdd_ext.krr(f_s, y_s, f_b, kernel=kernel, ridge=ridge, on_failure="nan")  # [B, Q, C]
    return prediction_loss(predicted, y_b, config)


def prediction_loss(predicted: Tensor, target: Tensor, config: DistillConfig) -> Tensor:
    """Return ``config.loss`` between predictions [..., Q, C] and representations ``target`` [Q, C], a scalar.

    "mse": mean squared error. "cosine": 1 - cosine of the two vectors. "cross-entropy": between softmax(prediction / τ)
    and softmax(target / τ). It is multiplied by τ², so that the gradient keeps its size. The entropy of the latter is
    subtracted, so that a perfect prediction gives 0.
    """
    target = target.expand_as(predicted)
    if config.loss == "cosine":
        return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()
    if config.loss == "cross-entropy":
        t = config.temperature
        log_p, log_target = F.log_softmax(predicted / t, -1), F.log_softmax(target / t, -1)
        return t * t * (log_target.exp() * (log_target - log_p)).sum(-1).mean()
    return F.mse_loss(predicted, target)


def total_variation(pixels: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, vertical plus horizontal. pixels: [S, C, H, W]; a
    scalar."""
    return (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean() + (pixels[..., 1:] - pixels[..., :-1]).abs().mean()


def realism(x_s: Tensor, initial: Tensor, config: DistillConfig) -> Tensor:
    """Return the weighted penalties that keep X_s [S, C, H, W] looking like images, a scalar: its total variation,
    and its mean squared distance to ``initial``, the real images it started from."""
    return config.tv_weight * total_variation(x_s) + config.init_weight * (x_s - initial).square().mean()
