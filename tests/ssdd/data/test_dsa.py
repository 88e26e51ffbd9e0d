"""DSA: each operation against a plain formula, its draws within the published strengths, gradients through it."""

import math

import pytest
import torch

from ssdd.data import random_operation
from ssdd.data.dsa import OPERATIONS, apply, draw

SHAPE = (3, 3, 8, 6)


@pytest.fixture
def pixels():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def each_pixel(pixels, value):
    """The images of ``value(n, c, i, j)``."""
    out = torch.zeros_like(pixels)
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(size) for size in pixels.shape)).tolist():
        out[n, c, i, j] = value(n, c, i, j)
    return out


def colour(x, brightness, saturation, contrast):
    def bright(n, c, i, j):
        return x[n, c, i, j] + brightness[n] - 0.5

    def saturated(n, c, i, j):
        grey = sum(bright(n, k, i, j) for k in range(3)) / 3
        return grey + (bright(n, c, i, j) - grey) * 2 * saturation[n]

    y = each_pixel(x, saturated)
    return torch.stack([y[n].mean() + (y[n] - y[n].mean()) * (0.5 + contrast[n]) for n in range(len(x))])


def crop(x, down, right):
    def moved(n, c, i, j):
        i, j = i + int(down[n]), j + int(right[n])
        return x[n, c, i, j] if 0 <= i < 8 and 0 <= j < 6 else 0.0

    return each_pixel(x, moved)


def cutout(x, row, column):
    """A hole of 4x3 pixels with its middle (the upper left of two) one past ``row - 4 / 2``; clipped at the edges."""

    def kept(n, c, i, j):
        rows = {min(max(int(row[n]) - 2 + k, 0), 7) for k in range(4)}
        columns = {min(max(int(column[n]) - 1 + k, 0), 5) for k in range(3)}
        return 0.0 if i in rows and j in columns else x[n, c, i, j]

    return each_pixel(x, kept)


def flip(x, flipped):
    return each_pixel(x, lambda n, c, i, j: x[n, c, i, 5 - j if flipped[n] else j])


def sampled(x, where):
    """Bilinear values at ``where(n, across, down)``; both in [-1, 1] from corner pixel to corner pixel; 0 outside."""

    def value(n, c, i, j):
        across, down = where(n, 2 * j / 5 - 1, 2 * i / 7 - 1)
        column, row = (across + 1) / 2 * 5, (down + 1) / 2 * 7
        total = 0.0
        for a in (math.floor(row), math.floor(row) + 1):
            for b in (math.floor(column), math.floor(column) + 1):
                if 0 <= a < 8 and 0 <= b < 6:
                    total += (1 - abs(row - a)) * (1 - abs(column - b)) * float(x[n, c, a, b])
        return total

    return each_pixel(x, value)


def scale(x, across, down):
    return sampled(x, lambda n, a, d: (float(across[n]) * a, float(down[n]) * d))


def rotate(x, degrees):
    def where(n, a, d):
        t = math.radians(float(degrees[n]))
        return math.cos(t) * a - math.sin(t) * d, math.sin(t) * a + math.cos(t) * d

    return sampled(x, where)


PLAIN = {"colour": colour, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_its_plain_formula(name, pixels):
    for seed in range(3):
        parameters = draw(name, pixels.shape, torch.Generator().manual_seed(seed))
        parameters = tuple(p.double() if p.is_floating_point() else p for p in parameters)
        x = pixels.clone().requires_grad_()
        got = apply(name, x, parameters)
        assert got.shape == pixels.shape
        torch.testing.assert_close(got, PLAIN[name](pixels, *parameters), rtol=1e-6, atol=1e-7)
        got.sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.any()


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("colour", [(0, 1)] * 3),
        ("crop", [(-4, 4), (-2, 2)]),  # an eighth of 32 and of 16
        ("cutout", [(0, 32), (0, 16)]),
        ("flip", [(0, 1)]),
        ("scale", [(1 / 1.2, 1.2)] * 2),
        ("rotate", [(-15, 15)]),
    ],
)
def test_draws_fill_the_published_range_image_by_image(name, bounds):
    drawn = draw(name, torch.Size((4000, 3, 32, 16)), torch.Generator().manual_seed(0))
    assert len(drawn) == len(bounds)
    for values, (low, high) in zip(drawn, bounds, strict=True):
        values = values.double()
        assert values.shape == (4000,) and low <= values.min() and values.max() <= high
        assert values.max() - values.min() > 0.98 * (high - low)
        assert abs(float(values.mean()) - (low + high) / 2) < 0.05 * (high - low)


def test_one_operation_per_batch_drawn_evenly():
    black = torch.zeros(2, 3, 8, 6)
    black[:, :, 2, 1] = 1
    seen = []
    for seed in range(120):
        g = torch.Generator().manual_seed(seed)
        name = OPERATIONS[int(torch.randint(6, (1,), generator=g))]
        wanted = apply(name, black, draw(name, black.shape, g))
        assert torch.equal(random_operation(black, torch.Generator().manual_seed(seed)), wanted)
        seen.append(name)
    assert all(8 <= seen.count(name) <= 36 for name in OPERATIONS)
