"""Random views: their shapes, what they preserve, and that only the generator decides them."""

import dataclasses

import pytest
import torch

from ssdd.config import AugmentConfig
from ssdd.data import augment, crop_and_flip

NOTHING = AugmentConfig(
    shift=0, rotate=0, scale=0, flip=0, brightness=0, contrast=0, saturation=0, grayscale=0, noise=0
)


def images(channels=3):
    return torch.rand(6, channels, 10, 8, generator=torch.Generator().manual_seed(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_determinism(channels):
    x, config = images(channels), AugmentConfig(noise=0.1, rotate=20)
    a, b, c = (augment(x, config, generator(s)) for s in (0, 0, 1))
    assert a.shape == x.shape and torch.equal(a, b) and not torch.equal(a, c)


def test_all_amounts_zero_changes_nothing():
    assert torch.allclose(augment(images(), NOTHING, generator()), images(), atol=1e-5)


def test_flip_alone_mirrors():
    flipped = augment(images(), dataclasses.replace(NOTHING, flip=1.0), generator())
    assert torch.allclose(flipped, images().flip(3), atol=1e-5)


def test_grayscale_alone_drops_the_colour():
    grey = augment(images(), dataclasses.replace(NOTHING, grayscale=1.0), generator())
    assert torch.allclose(grey[:, 0], grey[:, 1], atol=1e-6) and float(grey.std()) > 0.05


def test_crop_and_flip_is_a_window_of_the_padded_image():
    x, pad = images(), 2
    out = crop_and_flip(x, pad, generator())
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    assert out.shape == x.shape
    for i in range(len(x)):
        windows = [
            w
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for w in [padded[i, :, top : top + 10, left : left + 8]]
        ]
        assert any(torch.equal(out[i], w) or torch.equal(out[i], w.flip(2)) for w in windows)
    kept = crop_and_flip(x, 0, generator())
    assert all(torch.equal(k, a) or torch.equal(k, a.flip(2)) for k, a in zip(kept, x, strict=True))
