"""What is read out of an encoder: linear probes by ridge regression, and policies that clone the expert."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssdd
import ssdd_ext
from ssdd_ext import Linear, Ridge

RIDGES = torch.logspace(-4, 2, 13)


class Encoder:
    """Features of stored images, each shifted and scaled to mean 0 and variance 1 over unlabelled images.

    Args:
        features: a function from normalised images [N, C, H, W] to features [N, D].
        preprocessing: the normalisation.
        unlabelled: uint8 [N, H, W, C].
    """

    def __init__(self, features, preprocessing: ssdd.Preprocessing, unlabelled: Tensor) -> None:
        self.features, self.preprocessing = features, preprocessing
        self.mean, self.std = torch.zeros(()), torch.ones(())
        found = self(unlabelled)
        spread = found.std(0)
        # A feature that hardly varies is scaled as one with a tenth of the usual spread: fine-tuning may wake it up.
        self.mean, self.std = found.mean(0), spread.clamp_min(0.1 * float(spread.square().mean().sqrt()) + 1e-8)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        parts = [self.features(self.preprocessing(part)) for part in images.split(250)]
        return (torch.cat(parts) - self.mean) / self.std


def ridge_predict(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Predict targets [N, C] by ridge regression, whose ridge is chosen by leave-one-out.

    It is solved in float64: frames repeat, and the kernel matrix is then singular.
    """
    how = {"kernel": Linear(bias=1.0), "solve_dtype": torch.float64}
    centre = y.mean(0)
    ridge = ssdd_ext.krr_path(x, y - centre, ridges=Ridge.mean_trace(RIDGES), **how).best()
    return ssdd_ext.krr(x, y - centre, x_test, ridge=ridge, **how) + centre


def draw_balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw ``count`` rows, as many of each class as there are: classes take turns."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.zeros(len(labels))  # the how-manieth of its class a row is
    for c in labels.unique():
        rows = order[labels[order] == c]
        place[rows] = torch.arange(len(rows)).float()
    return order[place[order].argsort(stable=True)[:count]]


def probe_class(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Return the mean over the classes of the share of test rows of that class that are recognised."""
    one_hot = F.one_hot(y, int(y_test.max()) + 1).float()
    found = ridge_predict(x, one_hot, x_test).argmax(1)
    return float(torch.stack([(found[y_test == c] == c).float().mean() for c in y_test.unique()]).mean())


def probe_state(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Return R², the share of variance that is predicted, as a mean over the numbers of the state."""
    mean, std = y.mean(0), y.std(0).clamp_min(1e-6)
    error = (ridge_predict(x, (y - mean) / std, x_test) * std + mean - y_test).square().mean(0)
    return float((1 - error / y_test.var(0, correction=0)).mean())


class Policy(nn.Module):
    """The encoder's backbone, the fixed shift and scale of its features, and a linear layer over the actions."""

    def __init__(self, backbone: nn.Module, encoder: Encoder, actions: int) -> None:
        super().__init__()
        self.backbone, self.preprocessing = backbone, encoder.preprocessing
        self.register_buffer("mean", encoder.mean)
        self.register_buffer("std", encoder.std)
        self.head = nn.Linear(len(encoder.mean), actions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.backbone(x) - self.mean) / self.std)

    @torch.no_grad()
    def choose(self, images: Sequence[np.ndarray]) -> list[int]:
        """Return the most likely action for each image, as its position."""
        return self(self.preprocessing(torch.from_numpy(np.stack(images)))).argmax(1).tolist()


def clone(
    network: ssdd.Network,
    encoder: Encoder,
    frames: np.ndarray,
    actions: np.ndarray,
    *,
    frozen: bool,
    steps: int,
    count: int,
    seed: int,
) -> Policy:
    """Train a policy to take the expert's actions.

    BatchNorm keeps the statistics that the network has: the frames of one episode are too alike to take them from.

    Args:
        network: the pre-trained network; it stays as it is.
        encoder: its standardised features.
        frames: uint8 [N, H, W, C].
        actions: positions of the expert's actions [N].
        frozen: train the last layer only; otherwise everything.
        steps: Adam steps, with 32 frames each (all of them if there are fewer).
        count: number of actions.
        seed: seed of the batches.
    """
    policy = Policy(copy.deepcopy(network.backbone), encoder, count)
    images, labels = torch.from_numpy(frames), torch.from_numpy(actions)
    inputs = encoder(images) if frozen else encoder.preprocessing(images)
    model = policy.head if frozen else policy
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    g = torch.Generator().manual_seed(seed)
    policy.eval()
    for _ in range(steps):
        rows = torch.randperm(len(inputs), generator=g)[:32]
        loss = F.cross_entropy(model(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def success(policy, rooms: Sequence, seeds: Sequence[int], limit: int, actions: Sequence[int]) -> tuple[float, list]:
    """Return the share of layouts in which ``policy`` reaches the goal, and the images of the first of them.

    Rooms and policy are deterministic: one that comes back to an earlier state never reaches the goal, and is stopped.

    Args:
        policy: has ``choose``, from images to positions of actions.
        rooms: one room per layout.
        seeds: the layouts.
        limit: the largest number of steps.
        actions: the actions that positions mean.
    """
    for room, seed in zip(rooms, seeds, strict=True):
        room.reset(seed)
    running, reached, seen = list(range(len(seeds))), 0, [set() for _ in seeds]
    strip = []
    for _ in range(limit):
        running = [i for i in running if rooms[i].state not in seen[i]]
        if not running:
            break
        images = [rooms[i].image() for i in running]
        if running[0] == 0:
            strip.append(images[0])
        left = []
        for i, position in zip(running, policy.choose(images), strict=True):
            seen[i].add(rooms[i].state)
            if rooms[i].act(actions[position]):
                reached += 1
                strip += [rooms[0].image()] if i == 0 else []
            else:
                left.append(i)
        running = left
    return reached / len(seeds), strip
