"""Shared fixtures of the backend's tests: the backends, and random numbers."""

import pytest
import torch


@pytest.fixture(params=["native", "planned", "torch"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def random():
    """random(*shape, dtype=float64, grad=False): Gaussian numbers from a seed fixed per test."""
    generator = torch.Generator().manual_seed(20)

    def normal(*shape, dtype=torch.float64, grad=False):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)

    return normal
