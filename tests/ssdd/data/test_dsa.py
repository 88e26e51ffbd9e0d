"""DSA: every operation is its formula, written out image by image; draws are uniform; one draw serves two batches."""

import math

import pytest
import torch

from ssdd.data import DSA_OPERATIONS, Dsa, apply_dsa, draw_dsa


def numbers(n, seed=4):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))


def sampled(image, matrix):
    """Bilinear values at the places that ``matrix`` sends the pixels' centres to, from -1 at the first to 1 at the last
    pixel of a side; 0 outside. image [C, H, W]."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            place = torch.tensor([2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1], dtype=torch.float64)
            x, y = (matrix @ place).tolist()
            column, row = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
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
    for seed, n in ((4, len(x)), (5, len(x)), (4, 1)):
        u = numbers(n, seed)
        expected = torch.stack([plainly(image, operation, u[i % n].tolist()) for i, image in enumerate(x)])
        torch.testing.assert_close(apply_dsa(x, Dsa(operation, u)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", DSA_OPERATIONS)
def test_the_gradient_is_that_of_the_operation(operation):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_dsa(x, Dsa(operation, numbers(2))), x)
    (gradient,) = torch.autograd.grad(apply_dsa(x, Dsa(operation, numbers(2))).sum(), x)
    assert gradient.any()


@pytest.mark.parametrize("operation", DSA_OPERATIONS)
def test_the_largest_number_stays_in_the_published_range(operation):
    """Just below 1, where a product with the number of choices rounds up."""
    x = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = torch.full((1, 3), 1.0).nextafter(torch.tensor(0.0))
    expected = plainly(x[0], operation, u[0].tolist())[None]
    torch.testing.assert_close(apply_dsa(x, Dsa(operation, u)), expected, rtol=1e-5, atol=1e-5)


def test_draws_come_from_the_generator_with_every_operation_alike_often():
    drawn = [draw_dsa(torch.Generator().manual_seed(s), 4) for s in range(120)]
    again = [draw_dsa(torch.Generator().manual_seed(s), 4) for s in range(120)]
    names = [d.operation for d in drawn]
    assert all(8 <= names.count(name) <= 36 for name in DSA_OPERATIONS)
    assert all(
        a.operation == b.operation and torch.equal(a.numbers, b.numbers) for a, b in zip(drawn, again, strict=True)
    )
    assert draw_dsa(torch.Generator().manual_seed(0), operations=("flip",)).operation == "flip"


def test_the_numbers_of_a_draw_fill_the_unit_interval_image_by_image():
    u = draw_dsa(torch.Generator().manual_seed(0), 4000).numbers
    assert u.shape == (4000, 3) and u.min() >= 0 and u.max() < 1
    assert (u.max(0).values - u.min(0).values > 0.98).all() and ((u.mean(0) - 0.5).abs() < 0.05).all()
    assert draw_dsa(torch.Generator().manual_seed(0)).numbers.shape == (1, 3)
