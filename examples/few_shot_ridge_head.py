"""Few-shot learning with a ridge-regression head: a network trained through batches of small ridge problems.

Each task is a sine wave with its own amplitude and phase (Finn et al., 2017): a few points are known, others are
predicted. The head is a ridge regression on the network's features, solved per task (R2D2, Bertinetto et al., 2019).
ssdd_ext solves all tasks of a batch in one call, and the gradient flows through the solves into the network.

    python examples/few_shot_ridge_head.py
"""

import argparse

import torch

from ssdd_ext import Linear
from ssdd_ext.nn import RidgeHead


def tasks(count, shots, queries, generator):
    """Return ``count`` sine waves: known points [count, shots, 1], query points [count, queries, 1], and their
    values."""
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=generator)
    phase = torch.pi * torch.rand(count, 1, 1, generator=generator)
    x = 10 * torch.rand(count, shots + queries, 1, generator=generator) - 5
    y = amplitude * torch.sin(x - phase)
    return x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:]


def error(network, head, shots):
    """Return the mean squared error on 500 tasks that are not used in training."""
    x_known, y_known, x_asked, y_asked = tasks(500, shots, 50, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (head(network(x_known), y_known, network(x_asked)) - y_asked).square().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    parser.add_argument("--batch", type=int, default=32, help="tasks per step (default: 32)")
    parser.add_argument("--shots", type=int, default=10, help="known points per task (default: 10)")
    a = parser.parse_args()
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(1, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)
    )
    # The ridge is learned with the network, as R2D2 does. Scale and bias are for logits; these are values.
    head = RidgeHead(kernel=Linear(bias=1.0), learn_scale=False, learn_bias=False)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    print(f"error before training: {error(network, head, a.shots):.3f}")
    for _ in range(a.steps):
        x_known, y_known, x_asked, y_asked = tasks(a.batch, a.shots, 10, generator)
        loss = (head(network(x_known), y_known, network(x_asked)) - y_asked).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"error after {a.steps} steps: {error(network, head, a.shots):.3f}")


if __name__ == "__main__":
    main()
