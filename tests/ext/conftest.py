"""What the backend's tests share: the backends, and a fixed hypothesis profile."""

import pytest
import torch
from hypothesis import settings

# Derandomised: a test passes or fails by the code alone. Deadlines measure the machine's other users.
settings.register_profile("ssdd", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("ssdd")


@pytest.fixture(params=["native", "torch"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def random():
    """random(*shape, dtype=float64, grad=False): Gaussian numbers from a seed fixed per test."""
    generator = torch.Generator().manual_seed(20)

    def normal(*shape, dtype=torch.float64, grad=False):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)

    return normal
