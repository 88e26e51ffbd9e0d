"""Images that a camera stored rotated are read as image viewers show them, from folders and hub sets alike."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ssdd.config import InputError
from ssdd.data import load_images
from ssdd.data.pictures import ON_ITS_SIDE, ORIENTATION, orientation, size_of, suffixes, to_pixels, upright

FORMATS = ("png", "tiff", "webp", "jpg")
TURNS = {  # how a viewer transforms the stored pixels [H, W], from the EXIF standard
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stored_pixels(side_a=16, side_b=24):
    """Return random blocks of 8x8 pixels, which JPEG preserves approximately."""
    blocks = np.random.default_rng(3).integers(0, 256, (side_a // 8, side_b // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)


def write(path, pixels, turn):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    how = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(path.suffix[1:], {})
    Image.fromarray(pixels).save(path, exif=exif, **how)


def close(found, expected, path):
    lossy = 12 if path.suffix == ".jpg" else 0
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected.astype(int)).max() <= lossy


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("turn", TURNS)
def test_a_folder_is_read_as_viewers_show_it(tmp_path, ending, turn):
    pixels = stored_pixels()
    for i in range(3):
        write(tmp_path / "photos" / f"{i}.{ending}", pixels, turn)
    whole, streamed = load_images(tmp_path / "photos"), load_images(tmp_path / "photos", memory=100)
    expected = TURNS[turn](pixels)
    assert whole.size == expected.shape[:2] and streamed.fingerprint == whole.fingerprint
    for image in whole.x_train:
        close(image.numpy(), expected, tmp_path / f"0.{ending}")
    small = load_images(tmp_path / "photos", size=8).x_train[0].numpy()
    assert np.array_equal(small, to_pixels(Image.fromarray(whole.x_train[0].numpy()), 8, 3))


@pytest.mark.parametrize("ending", FORMATS)
def test_the_size_of_a_header_is_that_of_the_pixels(tmp_path, ending):
    for turn in TURNS:
        file = tmp_path / f"{turn}.{ending}"
        write(file, stored_pixels(), turn)
        with Image.open(file) as image:
            assert size_of(image) == ((24, 16) if turn in ON_ITS_SIDE else (16, 24))
        with Image.open(file) as image:
            assert size_of(upright(image)) == size_of(upright(upright(image)))  # turned once only
    with pytest.raises(InputError, match="mixed sizes: .*16x24.*24x16|mixed sizes: .*24x16.*16x24"):
        load_images(tmp_path)


def test_upright_and_turned_photos_mix_if_viewers_show_the_same_size(tmp_path):
    write(tmp_path / "a.jpg", stored_pixels(16, 24), 1)
    write(tmp_path / "b.jpg", stored_pixels(24, 16), 6)
    assert load_images(tmp_path).size == (16, 24)


def test_grey_and_deep_images_are_turned(tmp_path):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    for name, stored in (("grey", pixels), ("deep", pixels.astype(np.uint16) * 257)):
        for i in range(2):
            write(tmp_path / name / f"{i}.png", stored, 8)
        data = load_images(tmp_path / name)
        assert np.array_equal(data.x_train[0, ..., 0].numpy(), TURNS[8](pixels)), name


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"junk" * 9])
def test_damaged_exif_changes_nothing(tmp_path, block):
    pixels = stored_pixels()
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", exif=block)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg", exif=block, quality=100, subsampling=0)
    assert load_images(tmp_path).size == pixels.shape[:2]


def test_pictures_of_phones(tmp_path):
    """A JPEG with a second picture after it (MPO), and an orientation that only XMP has."""
    exif, pixels = Image.Exif(), stored_pixels()
    exif[ORIENTATION] = 6
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], exif=exif, quality=100, subsampling=0)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    first.save(tmp_path / "b.png", pnginfo=text)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    for name in ("a.jpg", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert size_of(image) == (24, 16)
        with Image.open(tmp_path / name) as image:
            close(to_pixels(image, None, 3), TURNS[6](pixels), tmp_path / name)
    assert load_images(tmp_path).size == (24, 16)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist_changes_nothing(tmp_path, value):
    write(tmp_path / "a.png", stored_pixels(), value)
    with Image.open(tmp_path / "a.png") as image:
        assert orientation(image) == 1 and np.array_equal(to_pixels(image, None, 3), stored_pixels())


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    """The standard allows EXIF data after the pixels, where a reader of headers alone does not see it."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    Image.fromarray(stored_pixels()).save(buffer, "PNG")
    whole, block = buffer.getvalue(), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"eXIf", block)
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(whole[:-12] + chunk.getvalue() + whole[-12:])
    data = load_images(tmp_path)
    assert np.array_equal(data.x_train[0].numpy(), TURNS[6](stored_pixels()))


def test_endings_of_jpeg_files(tmp_path):
    for name in ("a.jfif", "b.JPE", "c.Jpg", "d.jpeg", "e.mpo"):
        Image.fromarray(stored_pixels()).save(tmp_path / name, "JPEG")
    assert len(load_images(tmp_path).files) == 5


@pytest.mark.parametrize("top, note", [(65535, ""), (4095, ": the brightest pixel is 15 of 255; scale the files")])
def test_pictures_of_16_bits_are_reported(tmp_path, top, note):
    """Microscopes write 12 bits into 16, of which the upper 8 are nearly black."""
    for i in range(3):
        Image.fromarray(np.full((8, 8), top - i, np.uint16)).save(tmp_path / f"{i}.png")
    data = load_images(tmp_path)
    assert f"3 images of 16 bits per channel, of which the upper 8 are used{note}" in data.summary
    assert ("brightest" in data.summary) == bool(note)


def test_a_damaged_avif_is_an_unreadable_image(tmp_path):
    """Pillow raises a RuntimeError for it."""
    if ".avif" not in suffixes():
        pytest.skip("THIS PILLOW READS NO AVIF: a damaged one was not tried")
    for i in range(3):
        Image.fromarray(stored_pixels()).save(tmp_path / f"{i}.avif")
    whole = (tmp_path / "1.avif").read_bytes()
    (tmp_path / "1.avif").write_bytes(whole.replace(b"av01", b"av00"))
    with pytest.raises(InputError, match=r"1.avif: unreadable image .*--skip-unreadable"):
        load_images(tmp_path)
    assert len(load_images(tmp_path, skip_unreadable=True).files) == 2


@pytest.mark.parametrize("turn", [3, 6])
def test_a_hub_set_is_read_like_a_folder(tmp_path, turn, monkeypatch):
    pytest.importorskip("datasets", reason="THE OPTIONAL LIBRARY `datasets` IS NOT HERE: no hf:... set was read")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for i in range(5):
        write(tmp_path / "photos" / f"{i}.png", stored_pixels(), turn)
    folder, hub = load_images(tmp_path / "photos"), load_images(f"hf:{tmp_path / 'photos'}")
    assert hub.size == folder.size == TURNS[turn](stored_pixels()).shape[:2]
    assert np.array_equal(hub.x_train[0].numpy(), folder.x_train[0].numpy())
