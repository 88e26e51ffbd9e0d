"""A target brought to the source's size and channels: the numbers of an image library, and what is said."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.data import ImageSet, convert_images, load_target


@pytest.fixture(scope="module")
def colour():
    """Smooth colour images, 21 x 14 pixels, where resizing has something to say."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(9, 3, 5, 4, generator=g)
    x = torch.nn.functional.interpolate(coarse, size=(21, 14), mode="bilinear").mul(255).round().to(torch.uint8)
    x = x.permute(0, 2, 3, 1).contiguous()
    return ImageSet("birds", x[:6], x[6:], torch.arange(6) % 2, torch.arange(3) % 2, summary="birds: found")


def test_a_set_that_fits_stays_the_same_object(colour):
    assert convert_images(colour, 3, (21, 14)) is colour


@pytest.mark.parametrize("size", [(8, 8), (32, 40)])
def test_sizes_are_those_of_pillow(colour, size):
    got = convert_images(colour, 3, size)
    for part in ("train", "test"):
        images = getattr(colour, f"x_{part}").numpy()
        expected = np.stack(
            [np.asarray(Image.fromarray(i).resize(size[::-1], Image.Resampling.BILINEAR)) for i in images]
        )
        assert np.abs(getattr(got, f"x_{part}").numpy().astype(int) - expected).max() <= 1
    assert torch.equal(got.y_train, colour.y_train) and torch.equal(got.rows_test, colour.rows_test)
    assert got.summary == f"birds: found; resized from 14x21 to {size[1]}x{size[0]}"
    assert got.preprocessing != colour.preprocessing or size != (21, 14)


def test_channels(colour):
    grey = convert_images(colour, 1, (21, 14))
    expected = np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in colour.x_train.numpy()])
    assert np.abs(grey.x_train[..., 0].numpy().astype(int) - expected).max() <= 1
    assert grey.summary.endswith("; colour made grey")
    again = convert_images(grey, 3, (7, 7))
    assert again.channels == 3 and all(torch.equal(again.x_train[..., i], again.x_train[..., 0]) for i in (1, 2))
    assert again.summary.endswith("; resized from 14x21 to 7x7, grey repeated as colour")


def test_a_large_part_is_kept_in_a_file(colour, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert torch.equal(convert_images(colour, 1, (8, 8), memory=10).x_train, convert_images(colour, 1, (8, 8)).x_train)
    assert len(list(tmp_path.rglob("*.npy"))) == 2


def test_a_folder_of_several_sizes_is_a_target(colour, tmp_path, digits):
    for i, image in enumerate(colour.x_train.numpy()):
        folder = tmp_path / "birds" / f"class-{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[: 20 - i]).save(folder / f"{i}.png")
    target = load_target(tmp_path / "birds", like=digits)
    assert (target.size, target.channels, target.classes) == ((8, 8), 1, 2)
    assert target.summary.endswith("; resized to 8x8; colour made grey")
