"""A variational autoencoder whose encoder starts from a pre-trained network."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssdd


class Vae(nn.Module):
    """Encoder, two linear layers for mean and log-variance of the code, and a decoder of two hidden layers.

    Args:
        backbone: maps normalised images to features [N, dimension]; it is trained further.
        dimension: the number of features.
        preprocessing: the normalisation that the backbone expects.
        shape: (C, H, W) of the images.
        code: the number of latent variables.
    """

    def __init__(
        self, backbone: nn.Module, dimension: int, preprocessing: ssdd.Preprocessing, shape: tuple[int, ...], code: int
    ) -> None:
        super().__init__()
        self.backbone, self.preprocessing, self.shape = backbone, preprocessing, shape
        self.scale = nn.BatchNorm1d(dimension, affine=False)  # features of any size give codes of a usual size
        self.mean, self.log_variance = nn.Linear(dimension, code), nn.Linear(dimension, code)
        self.decoder = nn.Sequential(
            nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, math.prod(shape))
        )

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the code, [N, code] each, of pixels in [0, 1]."""
        features = self.scale(self.backbone(self.preprocessing.normalise(pixels)))
        return self.mean(features), self.log_variance(features)

    def decode(self, code: Tensor) -> Tensor:
        """Return the logits of the pixels, [N, C, H, W]."""
        return self.decoder(code).unflatten(1, self.shape)

    def bound(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return the negative ELBO of each image in nats, [N].

        A pixel is a Bernoulli variable whose probability is its grey value. This is the mean of the bound over all
        binary images that are drawn so.
        """
        mean, log_variance = self.encode(pixels)
        logits = self.decode(mean + (0.5 * log_variance).exp() * noise)
        reconstruction = F.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum((1, 2, 3))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return reconstruction + divergence


def fit_vae(network: ssdd.Network, data: ssdd.ImageSet, pixels: Tensor, steps: int, seed: int, code: int = 16) -> Vae:
    """Train a VAE on ``pixels`` [n, C, H, W]. Its encoder starts as a copy of ``network``'s, everything else at random.

    Args:
        network: the encoder of an arm; it stays as it is.
        data: its preprocessing is used.
        pixels: the training images, in [0, 1].
        steps: optimiser steps, with 64 images each (all of them if there are fewer).
        seed: seed of the random weights, the batches and the noise.
        code: the number of latent variables. Default 16.
    """
    backbone, shape = copy.deepcopy(network.backbone), tuple(pixels.shape[1:])
    vae = ssdd.seeded(lambda: Vae(backbone, network.dimension, data.preprocessing, shape, code), seed)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    g = torch.Generator().manual_seed(seed)
    vae.train()
    for _ in range(steps):
        batch = pixels[torch.randperm(len(pixels), generator=g)[:64]]
        loss = vae.bound(batch, torch.randn(len(batch), code, generator=g)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae.eval()


@torch.no_grad()
def measure_vae(vae: Vae, pixels: Tensor) -> dict[str, float]:
    """Return the mean negative ELBO in nats and the squared error per pixel of held-out ``pixels``.

    The noise of the code is the same for every model.
    """
    noise = torch.randn(len(pixels), vae.mean.out_features, generator=torch.Generator().manual_seed(0))
    again = vae.decode(vae.encode(pixels)[0]).sigmoid()
    return {"nelbo": float(vae.bound(pixels, noise).mean()), "error": float((again - pixels).square().mean())}
