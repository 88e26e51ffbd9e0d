"""Replace the kernel ridge regression of a distillation loop with one call.

The loop learns synthetic features and targets from which a ridge regression predicts the targets of real data. It runs
twice, with the usual PyTorch lines and with ssdd_ext, and prints the losses and the time of both.

    python examples/drop_in_loop.py
"""

import argparse
import time

import torch

import ssdd_ext
from ssdd_ext import Linear, Ridge


def usual_loss(x_s, y_s, x_q, y_q):
    """Compute the mean squared error of K_qs (K_ss + λI)⁻¹ Y_s against Y_q, in plain PyTorch."""
    k_ss = x_s @ x_s.T + 1.0
    k_qs = x_q @ x_s.T + 1.0
    ridge = 1e-6 * k_ss.detach().trace()
    alpha = torch.linalg.solve(k_ss + ridge * torch.eye(len(k_ss)), y_s)
    return torch.nn.functional.mse_loss(k_qs @ alpha, y_q)


def ssdd_loss(x_s, y_s, x_q, y_q):
    """Compute the same number by one call."""
    return ssdd_ext.krr_mse(x_s, y_s, x_q, y_q, kernel=Linear(bias=1.0), ridge=Ridge.trace(1e-6))


def distil(loss_of, x_real, y_real, points, steps):
    """Learn ``points`` synthetic pairs; return the last loss and the seconds per step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(points, x_real.shape[1], generator=generator).requires_grad_()
    y = torch.randn(points, y_real.shape[1], generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([x, y], lr=0.01)
    begin = time.perf_counter()
    for _ in range(steps):
        loss = loss_of(x, y, x_real, y_real)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), (time.perf_counter() - begin) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="synthetic pairs (default: 200)")
    parser.add_argument("--steps", type=int, default=50, help="optimiser steps (default: 50)")
    a = parser.parse_args()
    torch.manual_seed(1)
    x_real = torch.randn(1024, 1024)
    y_real = torch.tanh(x_real @ torch.randn(1024, 10) / 32)
    for name, loss_of in (("PyTorch", usual_loss), ("ssdd_ext", ssdd_loss)):
        loss, seconds = distil(loss_of, x_real, y_real, a.points, a.steps)
        print(f"{name:10} loss {loss:.6f}   {1e3 * seconds:.2f} ms per step")


if __name__ == "__main__":
    main()
