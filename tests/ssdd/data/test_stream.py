"""Sets larger than the memory limit give the same images, mapped; also Tiny-ImageNet's and the hub's forms."""

import builtins
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.config import InputError
from ssdd.data import cache_directory, load_images
from ssdd.data.folder import to_pixels


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_images(n, seed=0, side=8):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def same(a, b):
    assert torch.equal(a.x_train, b.x_train) and torch.equal(a.x_test, b.x_test)
    assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("rows_train", "rows_test"))
    assert (a.y_train is None) == (b.y_train is None) and (a.y_train is None or torch.equal(a.y_train, b.y_train))
    assert a.fingerprint == b.fingerprint and a.preprocessing == b.preprocessing


def in_file(tensor) -> bool:
    """Return True if the tensor's bytes lie in a mapped file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return len(line.split()) > 5 and line.split()[5].startswith("/")
    return False


@pytest.mark.parametrize("parts", [("train", "test"), ("",)])
def test_folder_is_decoded_once_and_mapped(tmp_path, parts, monkeypatch):
    folder = tmp_path / "photos"
    for part in parts:
        for i, pixels in enumerate(random_images(10, len(part))):
            write(folder / part / ("ant" if i % 2 else "bee") / f"{i}.png", pixels)
    whole, streamed = load_images(folder), load_images(folder, memory=100)
    same(whole, streamed)
    assert in_file(streamed.x_train) and not in_file(whole.x_train)
    files = sorted(p.name for p in (cache_directory() / "images").iterdir())
    assert len(files) == 2
    monkeypatch.setattr("ssdd.data.folder.to_pixels", None)  # nothing is decoded again
    same(whole, load_images(folder, memory=100))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(next(folder.rglob("3.png")), 255 - random_images(1)[0])
    os.utime(next(folder.rglob("3.png")), ns=(1, 1))
    assert load_images(folder, memory=100).fingerprint != whole.fingerprint  # a changed file is noticed


@pytest.mark.parametrize("test_part", [True, False])
def test_npz_is_mapped_in_its_file(tmp_path, test_part):
    arrays = {"x_train": random_images(20), "y_train": np.arange(20) % 4}
    if test_part:
        arrays |= {"x_test": random_images(5, 1), "y_test": np.arange(5) % 4}
    np.savez(tmp_path / "set.npz", **arrays)
    whole, streamed = load_images(tmp_path / "set.npz"), load_images(tmp_path / "set.npz", memory=100)
    same(whole, streamed)
    assert in_file(streamed.x_train) and not in_file(whole.x_train)
    assert (cache_directory() / "images").exists() != test_part


def test_npz_that_cannot_be_mapped(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", x_train=random_images(20))
    with pytest.raises(InputError, match="compressed; write it with numpy.savez"):
        load_images(tmp_path / "set.npz", memory=100)
    np.savez(tmp_path / "set.npz", x_train=np.array([print] * 100, dtype=object))
    with pytest.raises(InputError, match="plain"):
        load_images(tmp_path / "set.npz", memory=100)


def test_npz_whose_header_lies(tmp_path):
    """A header that promises more bytes than the file has is an error, not a read past the end (SIGBUS)."""
    np.save(tmp_path / "x.npy", random_images(4))
    lying = (tmp_path / "x.npy").read_bytes().replace(b"(4, 8, 8, 3)", b"(400000, 8, 8, 3)".ljust(12))[: 128 + 768]
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x_train.npy", lying)
    for memory in (100, 1 << 30):
        with pytest.raises(InputError, match=r"set\.npz"):
            load_images(tmp_path / "set.npz", memory=memory)


def test_no_place_for_decoded_images(tmp_path):
    for i, pixels in enumerate(random_images(10, side=64)):
        write(tmp_path / "photos" / f"{i}.png", pixels)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(InputError, match="no place for .* XDG_CACHE_HOME"):
            load_images(tmp_path / "photos", memory=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((cache_directory() / "images").iterdir())


@pytest.fixture
def tiny(tmp_path):
    """A small copy of Tiny-ImageNet's folders."""
    root, lines = tmp_path / "tiny-imagenet-200", []
    for c, wnid in enumerate(("n02", "n01")):
        for i, pixels in enumerate(random_images(3, c)):
            write(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pixels)
        write(root / "val" / "images" / f"val_{c}.JPEG", random_images(1, 9)[0])
        lines.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    write(root / "test" / "images" / "test_0.JPEG", random_images(1)[0])
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet(tiny):
    data = load_images(tiny)
    assert data.x_train.shape == (6, 8, 8, 3) and len(data.x_test) == 2
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1] and data.y_test.tolist() == [1, 0]  # sorted: n01, n02
    assert load_images(tiny, size=4).size == (4, 4)


@pytest.mark.parametrize(
    "text, named",
    [
        ("val_0.JPEG n01\n", "line 1"),
        ("val_0.JPEG\tn01\n", "no class for val_1.JPEG"),
        ("val_0.JPEG\tn01\nval_1.JPEG\tn09\n", "n09 has no folder"),
    ],
)
def test_tiny_imagenet_with_bad_annotations(tiny, text, named):
    (tiny / "val" / "val_annotations.txt").write_text(text)
    with pytest.raises(InputError, match=named):
        load_images(tiny)


def test_deep_and_floating_point_images(tmp_path):
    deep = Image.fromarray(np.array([[0, 65535], [257, 32896]], np.uint16))
    assert to_pixels(deep, None, 1)[..., 0].tolist() == [[0, 255], [1, 128]]
    deep.save(tmp_path / "a.png")
    deep.save(tmp_path / "b.png")
    assert load_images(tmp_path).channels == 1
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "c.tif")
    with pytest.raises(InputError, match=r"c\.tif: unreadable image \(floating point"):
        load_images(tmp_path)


def test_huggingface_without_its_library(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'ssdd\[hf\]'"):
        load_images("hf:somebody/something")


@pytest.fixture
def hub(tmp_path):
    return pytest.importorskip("datasets", reason="THE OPTIONAL LIBRARY `datasets` IS NOT HERE: no hf:... set was read")


def table(hub, images, labels=None, **features):
    columns = {"image": [Image.fromarray(x) for x in images]}
    kinds = {"image": hub.Image()}
    if labels is not None:
        columns["label"], kinds["label"] = labels, hub.ClassLabel(names=["a", "b"])
    return hub.Dataset.from_dict(columns, features=hub.Features(kinds))


def test_huggingface_sets(hub, tmp_path):
    x, q = random_images(6), random_images(2, 1)
    parts = hub.DatasetDict({"train": table(hub, x, [0, 1, 1, 0, 1, 0]), "validation": table(hub, q, [1, 0])})
    parts.save_to_disk(tmp_path / "saved")
    data = load_images(f"hf:{tmp_path / 'saved'}")
    assert np.array_equal(data.x_train.numpy(), x) and np.array_equal(data.x_test.numpy(), q)
    assert data.y_train.tolist() == [0, 1, 1, 0, 1, 0] and data.y_test.tolist() == [1, 0]
    same(data, load_images(f"hf:{tmp_path / 'saved'}", memory=100))
    assert load_images(f"hf:{tmp_path / 'saved'}", size=4).size == (4, 4)
    table(hub, x).save_to_disk(tmp_path / "one")
    alone = load_images(f"hf:{tmp_path / 'one'}")
    assert len(alone.x_train) == 5 and alone.y_train is None


def test_huggingface_sets_that_do_not_fit(hub, tmp_path):
    hub.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(InputError, match="expected a column of images"):
        load_images(f"hf:{tmp_path / 'text'}")
    mixed = [*random_images(2), *random_images(1, side=9)]
    table(hub, mixed).save_to_disk(tmp_path / "mixed")
    with pytest.raises(InputError, match="image 2 is 9x9; give --size"):
        load_images(f"hf:{tmp_path / 'mixed'}")
    with pytest.raises(InputError, match="cannot be read"):
        load_images(f"hf:{tmp_path / 'nothing'}")


@pytest.mark.parametrize(
    "column, values, named",
    [
        ("image", [{"bytes": b"junk", "path": None}] * 4, "train: image 0 cannot be read"),
        ("image", [None] * 4, "train: image 0 is missing"),
    ],
)
def test_huggingface_columns_that_do_not_fit(hub, tmp_path, column, values, named):
    good = {"image": [Image.fromarray(x) for x in random_images(4)], "label": [0, 1, 1, 0]}
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    hub.Dataset.from_dict(good | {column: values}, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=named):
        load_images(f"hf:{tmp_path / 'set'}")


def test_huggingface_labels_that_are_withheld(hub, tmp_path):
    def saved(**test):
        parts = {"train": table(hub, random_images(4), [0, 1, 1, 0]), **test}
        hub.DatasetDict(parts).save_to_disk(tmp_path / str(len(test)))
        return load_images(f"hf:{tmp_path / str(len(test))}")

    withheld, known = table(hub, random_images(2, 1), [-1, -1]), table(hub, random_images(3, 2), [1, 0, 1])
    assert saved(test=withheld, validation=known).y_test.tolist() == [1, 0, 1]
    assert saved(test=withheld).y_test is None


def test_the_summary_of_a_hub_set(hub, tmp_path):
    withheld, known = table(hub, random_images(2, 1), [-1, -1]), table(hub, random_images(3, 2), [1, 0, 1])
    parts = {"train": table(hub, random_images(4), [0, 0, 0, 0]), "test": withheld, "validation": known, "more": known}
    hub.DatasetDict(parts).save_to_disk(tmp_path / "set")
    assert load_images(f"hf:{tmp_path / 'set'}").summary == (
        "set: 4 training images of 1 class (column label) from the part train, 3 test images from validation; "
        "test images of classes without training images: 1; parts not read: test (its labels are withheld), more"
    )


def test_the_summary_of_tiny_imagenet(tiny):
    (tiny / "train" / "n01" / "n01_boxes.txt").write_text("")
    (tiny / "train" / ".DS_Store").write_text("")
    assert load_images(tiny).summary == (
        "tiny-imagenet-200: 6 training images of 2 classes (n01, n02) from train/, 2 test images from val/; "
        "test labels from val/val_annotations.txt; not read: test/ (it has no labels); "
        "1 file skipped: 1 hidden or system (.DS_Store)"
    )
