"""``ssdd embed``, and files of a folder that cannot be read."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.artifact import DistilledSet
from ssdd.config import InputError, PretrainConfig
from ssdd.data import load_images
from ssdd.evaluation import nearest_neighbours, save_backbone
from ssdd.models import build
from ssdd.teachers import Classifier, Teacher, read_representations
from ssdd.teachers.teacher import teacher_backbone


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes with twelve pictures each, of which one is torn and one is text."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 128, (8, 8, 3), dtype=np.uint8) + (100 if name == "dog" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i:02}.png")
    torn = tmp_path / "photos" / "cat" / "00.png"
    torn.write_bytes(torn.read_bytes()[:100])
    (tmp_path / "photos" / "dog" / "04.png").rename(tmp_path / "photos" / "dog" / "04 été: 猫.png")
    (tmp_path / "photos" / "dog" / "03.png").write_text("no image")
    return tmp_path / "photos"


def test_unreadable_files_are_an_error_or_are_skipped_and_counted(photographs):
    with pytest.raises(InputError, match="unreadable image"):
        load_images(photographs)
    data = load_images(photographs, skip_unreadable=True)
    assert len(data.x_train) + len(data.x_test) == 22 == len(data.files)
    assert "2 unreadable images skipped (cat/00.png, dog/03.png)" in data.summary
    labels = torch.cat([data.y_train, data.y_test]).tolist()
    assert labels == [int(name.startswith("dog")) for name in data.files]
    for i, name in enumerate(data.files[: len(data.x_train)]):
        assert np.array_equal(np.asarray(Image.open(photographs / name)), data.x_train[i].numpy())
    for file in (photographs / "cat").iterdir():
        file.write_text("no image")
    with pytest.raises(InputError, match="no training image of the class cat can be read"):
        load_images(photographs, skip_unreadable=True)
    with pytest.raises(InputError, match="skip_unreadable: only files of a folder"):
        load_images("digits", skip_unreadable=True)
    with pytest.raises(InputError, match="does not exist"):
        load_images(photographs / "missing")


def test_reading_a_folder_says_how_far_it_is(photographs, monkeypatch):
    class Moving(list):
        moves = True
        __call__ = list.append

    monkeypatch.setattr("ssdd.config.errors.time.monotonic", iter(range(1000)).__next__)
    events = Moving()
    load_images(photographs, skip_unreadable=True, report=events)
    assert [(e["stage"], e["step"], e["steps"]) for e in events] == [
        *(("check", i, 24) for i in range(24)),
        *(("read", i, 22) for i in range(22)),
    ]


def test_other_forms_of_images(tmp_path):
    rng = np.random.default_rng(1)
    stored = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(5)]
    for i, pixels in enumerate(stored):
        Image.fromarray(pixels).save(tmp_path / f"{i}.ppm")
    (tmp_path / "a.heic").write_bytes(b"not read without a plugin")
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        data = load_images(tmp_path)
        assert "1 .heic (a.heic; pillow-heif reads them)" in data.summary
        for x, name in zip(torch.cat([data.x_train, data.x_test]), data.files, strict=True):
            assert np.array_equal(x.numpy(), stored[int(name[0])])
    else:
        with pytest.raises(InputError, match="a.heic: unreadable image"):
            load_images(tmp_path)


def test_embed_writes_the_rows_in_the_order_of_the_source(photographs, tmp_path, ssdd_command):
    out, weights = tmp_path / "rows.npy", tmp_path / "teacher.safetensors"
    about = {"channels": 3, "size": [8, 8], "widths": [4, 8]}
    backbone = teacher_backbone("convnet", 3, (8, 8), (4, 8))
    Teacher(backbone, load_images(photographs, skip_unreadable=True).preprocessing, about).save(weights)
    arguments = ("embed", "-d", photographs, "--skip-unreadable", "--teacher", weights, "-o", out)
    printed = ssdd_command(*arguments, "--read-out").stdout
    assert "22 rows of" in printed and "18 nearest neighbours:" in printed and "linear probe" in printed
    data = load_images(photographs, skip_unreadable=True)
    teacher = Teacher.load(weights)
    rows, names = np.load(out), out.with_suffix(".txt").read_text("utf-8").splitlines()
    assert names == sorted(data.files)
    for x, name in zip(torch.cat([data.x_train, data.x_test]), data.files, strict=True):
        expected = teacher.represent(x[None])[0]
        torch.testing.assert_close(torch.from_numpy(rows[names.index(name)]), expected, rtol=1e-4, atol=1e-5)
    read = read_representations(out, data)
    torch.testing.assert_close(read.test, teacher.represent(data.x_test), rtol=1e-4, atol=1e-5)
    assert "exists" in str(ssdd_command(*arguments, fails=True).exception)
    assert "ends in .npy" in str(ssdd_command(*arguments[:-1], "rows.txt", fails=True).exception)


def test_a_pretrained_network_can_be_named(tmp_path, ssdd_command, digits):
    weights, out = tmp_path / "net.safetensors", tmp_path / "rows.npy"
    pixels = digits.x_train[:20].permute(0, 3, 1, 2).float() / 255
    pairs = DistilledSet(pixels, torch.randn(20, 3), digits.preprocessing).save(tmp_path / "pairs.safetensors")
    ssdd_command("pretrain", pairs, "-o", weights, "--model", "convnet-4-8", "--steps", 2)
    printed = ssdd_command("embed", "--teacher", weights, "-o", out)
    assert "convnet-4-8, 32 features, pre-trained" in printed.stderr
    assert np.load(out).shape == (1797, 32)
    about = {"classes": 10, "name": "digits"}
    network = build("convnet-4-8", 1, (8, 8), 10)
    Classifier.from_network(network, digits.preprocessing, (1, 8, 8), "convnet-4-8", 1.0, "cifar", about).save(weights)
    printed = ssdd_command("embed", "--teacher", weights, "-o", out, "--overwrite")
    assert "convnet-4-8, 32 features, of a classifier" in printed.stderr
    expected = network.eval().features(digits.preprocessing(digits.x_train[:5]))
    read = read_representations(out, digits)
    torch.testing.assert_close(read.train[:5], expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_features_is_refused(digits):
    empty = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 0))
    with pytest.raises(InputError, match=r"expected one vector per image, a tensor \[5, D\], got \[5, 0\]"):
        Teacher(empty, digits.preprocessing).represent(digits.x_test[:5])


def test_a_pretrained_network_keeps_its_width_and_stem(tmp_path, digits, monkeypatch):
    pixels = digits.x_train[:20].permute(0, 3, 1, 2).float() / 255
    pairs = DistilledSet(pixels, torch.randn(20, 1), digits.preprocessing)
    for stem in ("cifar", "imagenet"):
        network = build("resnet10", 1, (8, 8), 1, width=0.1, stem=stem)
        about = {"model": "resnet10", "seed": 0, "width": 0.1, "stem": stem}
        file = save_backbone(network, tmp_path / f"{stem}.safetensors", pairs, PretrainConfig(), **about)
        expected = network.eval().features(digits.preprocessing(digits.x_test[:5]))
        torch.testing.assert_close(Teacher.load(file).represent(digits.x_test[:5]), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("raise SystemExit('this ran')")
    about["model"] = "theirs:network"
    file = save_backbone(network, tmp_path / "theirs.safetensors", pairs, PretrainConfig(), **about)
    with pytest.raises(InputError, match=r"theirs\.safetensors.*code that a file names is not run"):
        Teacher.load(file)


def test_nearest_neighbours_are_a_weighted_vote():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=g), torch.randint(0, 3, (40,), generator=g)
    queries, reference = torch.randn(30, 5, generator=g), torch.randint(0, 3, (30,), generator=g)
    right = 0
    for query, label in zip(queries.double(), reference.tolist(), strict=True):
        cosines = torch.cosine_similarity(x.double(), query[None])
        votes = dict.fromkeys(range(3), 0.0)
        for i in cosines.argsort(descending=True)[:7].tolist():
            votes[int(y[i])] += float((cosines[i] / 0.07).exp())
        right += max(votes, key=votes.get) == label
    assert nearest_neighbours(x, y, queries, reference, k=7) == pytest.approx(100 * right / 30)
    with pytest.raises(InputError, match="two classes"):
        nearest_neighbours(x, y * 0, queries, reference)
