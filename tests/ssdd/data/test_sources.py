"""Images from digits, folders and .npz files, and errors in all of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.config import InputError
from ssdd.data import load_images


def write(path, size=(8, 8), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def test_digits(digits):
    assert digits.x_train.shape == (1297, 8, 8, 1) and digits.x_test.shape == (500, 8, 8, 1)
    assert digits.x_train.dtype == torch.uint8 and int(digits.x_train.max()) == 255
    assert digits.classes == 10
    x = digits.preprocessing(digits.x_train)
    assert abs(float(x.mean())) < 1e-4 and abs(float(x.std()) - 1) < 1e-3
    assert not set(digits.rows_train.tolist()) & set(digits.rows_test.tolist())


def test_folder_with_classes(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for name in ("ant", "bee"):
            for i in range(count):
                write(tmp_path / part / name / f"{i}.png", seed=i)
    data = load_images(tmp_path)
    assert data.x_train.shape == (6, 8, 8, 3) and data.x_test.shape == (4, 8, 8, 3)
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1] and data.y_test.tolist() == [0, 0, 1, 1]


def test_flat_folder_holds_images_out_and_has_no_labels(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.png", mode="L", seed=i)
    data = load_images(tmp_path)
    assert data.x_train.shape == (8, 8, 8, 1) and len(data.x_test) == 2 and data.y_train is None
    assert sorted([*data.rows_train.tolist(), *data.rows_test.tolist()]) == list(range(10))


def test_grey_among_colour_becomes_colour(tmp_path):
    write(tmp_path / "a.png", mode="L")
    write(tmp_path / "b.png", mode="RGB")
    assert load_images(tmp_path).channels == 3


def test_mixed_sizes(tmp_path):
    write(tmp_path / "a.png", (8, 8))
    write(tmp_path / "b.png", (9, 6))
    with pytest.raises(InputError, match=r"b\.png is 9x6.*--size"):
        load_images(tmp_path)
    assert load_images(tmp_path, size=4).size == (4, 4)


@pytest.mark.parametrize("test", ["val", "validation"])
def test_held_out_images_under_other_names(tmp_path, test):
    for part in ("train", test):
        for name in ("ant", "bee"):
            write(tmp_path / part / name / "0.png", seed=len(part))
    data = load_images(tmp_path)
    assert len(data.x_train) == len(data.x_test) == 2 and data.y_train.tolist() == data.y_test.tolist() == [0, 1]


def test_links_are_followed(tmp_path):
    for name in ("ant", "bee"):
        write(tmp_path / "elsewhere" / name / "0.png")
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    data = load_images(tmp_path / "set")
    assert len(data.x_train) + len(data.x_test) == 2 and data.classes >= 1
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "set")
    with pytest.raises(InputError, match="cat is a link to a folder it lies in"):
        load_images(tmp_path / "set")
    (tmp_path / "set" / "cat").unlink()
    (tmp_path / "set" / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"gone\.png: unreadable image"):
        load_images(tmp_path / "set")


@pytest.mark.parametrize("content", [b"no image", None])
def test_unreadable_image_is_named(tmp_path, content):
    write(tmp_path / "a.png", (64, 64))
    whole = write(tmp_path / "b.png", (64, 64)).read_bytes()
    (tmp_path / "b.png").write_bytes(content if content is not None else whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.png: unreadable image"):
        load_images(tmp_path)


def test_empty_folder_and_unknown_source(tmp_path):
    with pytest.raises(InputError, match="no images"):
        load_images(tmp_path)
    with pytest.raises(InputError, match="expected 'digits', a folder"):
        load_images(tmp_path / "missing")
    with pytest.raises(InputError, match="data: 'photo/' does not exist; expected"):
        load_images("photo/", size=32)


@pytest.mark.parametrize(
    "name, why",
    [
        ("", "hf:NAME, got an empty name"),
        ("hf:", "expected hf:NAME, with the name"),
        ("a.JPG", "got 'a.JPG'; give the folder of the images"),
        ("a.tar.gz", "; unpack it, and give the folder"),
        ("nothing.zip", "'nothing.zip' does not exist"),
    ],
)
def test_names_that_are_no_source(tmp_path, monkeypatch, name, why):
    monkeypatch.chdir(tmp_path)
    for file in ("a.JPG", "a.tar.gz"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(InputError, match=why):
        load_images(name)


def test_names_that_are_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a", x_train=np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4))
    (tmp_path / "a.npz").rename("A.NPZ")
    assert load_images("A.NPZ").size == (4, 4)
    assert "./digits" not in load_images("digits").summary
    (tmp_path / "digits").mkdir()
    assert load_images("digits").summary.endswith("; the folder of that name here is ./digits")


def test_npz(tmp_path):
    file = tmp_path / "set.npz"
    x = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    y = np.arange(12) % 3
    np.savez(file, x_train=x[:8], y_train=y[:8], x_test=x[8:], y_test=y[8:])
    data = load_images(file)
    assert data.name == "set" and np.array_equal(data.x_test.numpy(), x[8:]) and data.y_test.tolist() == y[8:].tolist()
    np.savez(file, x_train=x[..., 0])
    assert load_images(file).x_train.shape[1:] == (6, 6, 1)


class Explosive:
    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


@pytest.mark.parametrize(
    "arrays, named",
    [
        ({"x_train": np.array([Explosive()], dtype=object)}, "plain arrays"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.float32)}, "uint8"),
        ({"x_train": np.zeros((4, 8, 8, 2), np.uint8)}, "1 or 3"),
        ({"x_train": np.zeros((4, 8), np.uint8)}, r"N, H, W"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, "x_train.*it has images"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.zeros(3, np.int64)}, "y_train"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.zeros(4, np.float64)}, "y_train"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "x_test": np.zeros((4, 9, 8, 3), np.uint8)}, "x_test"),
        ({"x_train": np.zeros((1, 8, 8, 3), np.uint8)}, "at least two"),
        ({"x_train": np.zeros((4, 0, 8, 3), np.uint8)}, "at least one pixel"),
        (
            {"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.int64(3)},
            "y_train: expected one label per image",
        ),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8), "y_train": np.full(4, 2**50)}, "y_train: expected labels from"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, named):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=named):
        load_images(tmp_path / "bad.npz")


def test_a_file_that_is_no_npz(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match=r"bad\.npz"):
        load_images(tmp_path / "bad.npz")
    with pytest.raises(InputError, match=r"missing\.npz' does not exist"):
        load_images(tmp_path / "missing.npz")
