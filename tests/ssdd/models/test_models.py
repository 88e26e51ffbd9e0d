"""Networks: published shapes, names, and initial weights that a seed determines."""

import pytest
import torch

from ssdd.config import InputError
from ssdd.models import build, seeded


def test_published_student_has_the_published_features():
    network = build("convnet-128-256-512", 3, (32, 32), 512)
    assert network.dimension == 8192
    x = torch.zeros(2, 3, 32, 32)
    assert network.features(x).shape == (2, 8192) and network(x).shape == (2, 512)


def test_resnet18_with_the_published_stem():
    network = build("resnet18", 3, (32, 32), 7)
    stem = network.backbone.conv1
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (2, 2))
    assert sum(p.numel() for p in network.backbone.parameters()) == 11_168_832  # ResNet-18, 3x3 stem, no classifier
    assert network.features(torch.zeros(2, 3, 32, 32)).shape == (2, 512)
    assert network.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 7)


@pytest.mark.parametrize("name", ["vgg", "convnet", "convnet-", "convnet-16-x", "convnet-0"])
def test_unknown_names(name):
    with pytest.raises(InputError, match="model: expected"):
        build(name, 1, (8, 8), 2)


def test_too_many_blocks():
    with pytest.raises(InputError, match="8x8"):
        build("convnet-4-4-4-4", 1, (8, 8), 2)


def test_a_seed_fixes_the_start_and_leaves_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (seeded(lambda: build("convnet-4", 1, (8, 8), 2), s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.head.weight, b.head.weight) and not torch.equal(a.head.weight, c.head.weight)
