"""Realism: distances to the start and to the nearest real image, as fractions of the spread of real images."""

import pytest
import torch

from ssdd.evaluation import measure_realism
from ssdd.models import frozen, seeded


def test_distances_are_what_they_say(few, make):
    start = few.x_train[:4].permute(0, 3, 1, 2).float().div(255)
    images = start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    network = seeded(lambda: make(3), 0).eval()
    found = measure_realism(images, start, few, {"network": frozen(network)})
    assert list(found) == ["pixels", "network"]
    real = few.x_train.permute(0, 3, 1, 2).float().div(255)
    views = {
        "pixels": lambda x: x.flatten(1),
        "network": lambda x: network.features(few.preprocessing.normalise(x)).detach(),
    }
    for name, view in views.items():
        points, first, known = (view(x).double() for x in (images, start, real))
        spread = (known - known.mean(0)).square().sum(1).mean().sqrt()
        expected = (points - first).norm(dim=1).mean() / spread
        assert found[name]["start"] == pytest.approx(float(expected), rel=1e-4)
        nearest = torch.stack([(p - known).norm(dim=1).min() for p in points]).mean() / spread
        assert found[name]["nearest"] == pytest.approx(float(nearest), rel=1e-4)
        assert found[name]["nearest"] <= found[name]["start"] + 1e-9


def test_real_images_cost_nothing(few):
    start = few.x_train[:4].permute(0, 3, 1, 2).float().div(255)
    found = measure_realism(start, start, few, {})
    assert found["pixels"]["start"] == 0 and found["pixels"]["nearest"] == pytest.approx(0, abs=1e-5)
