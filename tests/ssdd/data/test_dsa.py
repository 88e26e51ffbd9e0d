"""DSA: every operation is its formula, written out image by image; one draw serves two batches."""

import math

import pytest
import torch

from ssdd.data import DSA_OPERATIONS, Dsa, apply_dsa, draw_dsa


def numbers(n):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(4))


def sampled(image, matrix):
    """Bilinear values at the places that ``matrix`` sends the pixels' centres to; 0 outside. image [C, H, W]."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            place = torch.tensor([(2 * j + 1) / width - 1, (2 * i + 1) / height - 1], dtype=torch.float64)
            x, y = (matrix @ place).tolist()
            column, row = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return out


def plainly(image, operation, u):
    """One image [C, H, W], float64, by the published formula."""
    a, b, c = u
    height, width = image.shape[1:]
    if operation == "colour":
        image = image + a - 0.5
        grey = image.mean(0, keepdim=True)
        image = (image - grey) * 2 * b + grey
        return (image - image.mean()) * (c + 0.5) + image.mean()
    if operation == "flip":
        return image.flip(2) if a < 0.5 else image
    if operation == "crop":
        down, across = (
            math.floor(v * (2 * int(s * 0.125 + 0.5) + 1)) - int(s * 0.125 + 0.5) for v, s in ((a, height), (b, width))
        )
        out = torch.zeros_like(image)
        for i in range(height):
            for j in range(width):
                if 0 <= i + down < height and 0 <= j + across < width:
                    out[:, i, j] = image[:, i + down, j + across]
        return out
    if operation == "cutout":
        out = image.clone()
        sides = [int(s * 0.5 + 0.5) for s in (height, width)]
        top, left = (
            math.floor(v * (s + 1 - cut % 2)) - cut // 2
            for v, s, cut in zip((a, b), (height, width), sides, strict=True)
        )
        out[:, max(top, 0) : max(top + sides[0], 0), max(left, 0) : max(left + sides[1], 0)] = 0
        return out
    if operation == "scale":
        factors = [v * (1.2 - 1 / 1.2) + 1 / 1.2 for v in (a, b)]
        return sampled(image, torch.diag(torch.tensor(factors, dtype=torch.float64)))
    angle = math.radians((a - 0.5) * 30)
    cos, sin = math.cos(angle), math.sin(angle)
    return sampled(image, torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64))


@pytest.mark.parametrize("operation", DSA_OPERATIONS)
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 1, 9, 6)])
def test_an_operation_is_its_formula_for_each_image_or_for_all_alike(operation, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    for n in (len(x), 1):
        u = numbers(n)
        wanted = torch.stack([plainly(image, operation, u[i % n].tolist()) for i, image in enumerate(x)])
        torch.testing.assert_close(apply_dsa(x, Dsa(operation, u)), wanted, rtol=1e-5, atol=1e-5)
        torch.autograd.grad(apply_dsa(x.requires_grad_(), Dsa(operation, u)).sum(), x)


def test_draws_come_from_the_generator_and_reach_every_operation():
    drawn = [draw_dsa(torch.Generator().manual_seed(s), 4) for s in range(60)]
    again = [draw_dsa(torch.Generator().manual_seed(s), 4) for s in range(60)]
    assert {d.operation for d in drawn} == set(DSA_OPERATIONS)
    assert all(
        a.operation == b.operation and torch.equal(a.numbers, b.numbers) for a, b in zip(drawn, again, strict=True)
    )
    assert draw_dsa(torch.Generator().manual_seed(0), operations=("flip",)).operation == "flip"
