"""The meaning of a folder's names: parts, classes, or neither. An ambiguous folder is an error with advice."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssdd
from ssdd.config import InputError
from ssdd.data import load_images


def make(root, *folders, images=3, extra=()):
    """Write ``images`` different pictures to each of ``folders``, and empty files for ``extra``, which are no
    pictures."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            Image.fromarray(np.full((8, 8, 3), 7 * number + i, np.uint8)).save(root / folder / f"{i}.png")
    for name in extra:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            Image.fromarray(np.full((8, 8, 3), 250, np.uint8)).save(file)
        else:
            file.write_bytes(b"x")
    return root


def labels(data):
    return [None if y is None else sorted(set(y.tolist())) for y in (data.y_train, data.y_test)]


def test_train_alone_is_the_training_part(tmp_path):
    data = load_images(make(tmp_path, "train/cat", "train/dog"))
    assert (len(data.x_train), len(data.x_test), data.classes) == (5, 1, 2)
    assert "6 images of 2 classes (cat, dog) from train/, 1 of them (one in five) held out" in data.summary


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("training", "testing"),
        ("Training", "Validation"),
        ("train", "valid"),
        ("train", "val"),
    ],
)
def test_parts_in_any_case(tmp_path, train, test):
    data = load_images(make(tmp_path, *(f"{part}/{name}" for part in (train, test) for name in ("cat", "dog"))))
    assert len(data.x_train) == len(data.x_test) == 6 and labels(data) == [[0, 1], [0, 1]]
    assert f"6 training images of 2 classes (cat, dog) from {train}/, 6 test images from {test}/" in data.summary


def test_test_before_val_unless_only_val_has_the_classes(tmp_path):
    both = make(tmp_path / "a", "train/cat", "train/dog", "test/cat", "test/dog", "val/cat", "val/dog")
    assert "from test/" in load_images(both).summary and "not read: val/ (6 images)" in load_images(both).summary
    flat = load_images(make(tmp_path / "b", "train/cat", "train/dog", "test", "val/cat", "val/dog"))
    assert labels(flat) == [[0, 1], [0, 1]] and "not read: test/ (3 images)" in flat.summary


def test_a_test_part_without_classes_leaves_the_training_labels(tmp_path):
    for name, test in (("a", "test"), ("b", "test/images")):
        data = load_images(make(tmp_path / name, "train/cat", "train/dog", test))
        assert labels(data) == [[0, 1], None] and "no test labels" in data.summary
    data = load_images(make(tmp_path / "c", "train", "test/cat", "test/dog"))
    assert labels(data) == [None, None] and "train/ has no class folders" in data.summary


STRAY = ("train/cat", "train/dog", "test/cat", "test/dog")


def test_a_picture_beside_class_folders_is_ambiguous(tmp_path):
    root = make(tmp_path, *STRAY, extra=["train/overview.png"])
    with pytest.raises(
        InputError,
        match=r"train/: 1 image \(overview.png\) beside the folders cat, dog.*"
        "--classes folders.*--classes none",
    ):
        load_images(root)
    left = load_images(root, classes="folders")
    assert len(left.x_train) == 6 and labels(left) == [[0, 1], [0, 1]]
    assert "1 image beside the class folders left out (train/overview.png)" in left.summary
    taken = load_images(root, classes="none")
    assert len(taken.x_train) == 7 and labels(taken) == [None, None] and "without classes" in taken.summary
    with pytest.raises(InputError, match="classes: expected one of folders, none, got 'some'"):
        load_images(root, classes="some")
    for source in ("digits", "hf:a/b"):
        with pytest.raises(InputError, match="classes: only those of a folder"):
            load_images(source, classes="none")
    with pytest.raises(InputError, match="no image lies in a folder"):
        load_images(make(tmp_path / "flat", "x") / "x", classes="folders")


def test_a_picture_beside_the_parts_is_left_out_and_reported(tmp_path):
    data = load_images(make(tmp_path, *STRAY, extra=["samples.png"]))
    assert labels(data) == [[0, 1], [0, 1]] and "not read: 1 image beside the parts (samples.png)" in data.summary


def test_classes_that_only_the_test_part_has(tmp_path):
    root = make(tmp_path, *STRAY, "test/aardvark")
    with pytest.raises(InputError, match="test/ has 1 class that train/ has not: aardvark .3 images in test/aardvark/"):
        load_images(root)
    data = load_images(root, classes="folders")
    assert labels(data) == [[0, 1], [0, 1, 2]] and data.y_test[:3].tolist() == [2, 2, 2]  # aardvark/ is read first
    assert "only in test/, numbered last: aardvark" in data.summary
    assert labels(load_images(root, classes="none")) == [None, None]


def test_classes_that_the_test_part_lacks_are_reported(tmp_path):
    data = load_images(make(tmp_path, "train/ant", "train/cat", "train/dog", "test/cat", "test/dog"))
    assert labels(data) == [[0, 1, 2], [1, 2]] and "no test images of 1 class (ant)" in data.summary


JUNK = (
    ".DS_Store",
    "train/.DS_Store",
    "train/cat/Thumbs.db",
    "__MACOSX/train/cat/._0.png",
    "train/cat/._0.png",
    "train/.ipynb_checkpoints/0-checkpoint.png",
    "train/cat/.ipynb_checkpoints/0-checkpoint.png",
    "train/@eaDir/0.png",
    "test/dog/desktop.ini",
    "lost+found/0.png",
    ".git/logo.png",
    ".thumbnails/0.png",
    "test/.hidden/0.png",
)


def test_hidden_and_system_names_are_no_images_and_no_classes(tmp_path):
    clean, littered = make(tmp_path / "a", *STRAY), make(tmp_path / "b", *STRAY, extra=JUNK)
    one, other = load_images(clean), load_images(littered)
    assert one.fingerprint == other.fingerprint and labels(other) == [[0, 1], [0, 1]]
    assert torch.equal(one.y_train, other.y_train) and torch.equal(one.y_test, other.y_test)
    assert "files and folders skipped: " in other.summary and "skipped" not in one.summary
    flat = make(tmp_path / "c", "x", extra=[f"x/{name}" for name in JUNK])
    assert len(load_images(flat / "x").x_train) == 2 and load_images(flat / "x").y_train is None


def test_names_that_only_begin_with_an_underscore_are_images(tmp_path):
    """Cameras write _MG_1234.JPG."""
    assert len(load_images(make(tmp_path, "_a", "_b", extra=["_a/_MG_1.png"])).x_train) == 6  # of 7


def test_skipped_files_are_reported_by_kind(tmp_path):
    files = ("notes.txt", "more.txt", "cat/IMG_1.HEIC", "cat/IMG_2.HEIC", "cat/IMG_3.HEIC", "dog/LICENSE")
    data = load_images(make(tmp_path, "cat", "dog", extra=files))
    skipped = (
        "6 files skipped: 3 .heic (cat/IMG_1.HEIC, ...; pillow-heif reads them), "
        "2 .txt (more.txt, ...), 1 without a suffix (dog/LICENSE)"
    )
    assert (
        data.summary == f"{tmp_path.name}: 6 images of 2 classes (cat, dog), 1 of them (one in five) held out for "
        f"testing; {skipped}"
    )
    assert "\n" not in data.summary


AMBIGUOUS = {
    "a part beside classes": (("train", "cat", "dog"), r"whether train/ is a part of the set or a class, beside cat/"),
    "test/ beside classes": (("test", "cat", "dog"), "whether test/ is a part"),
    "test/ alone": (("test/cat", "test/dog"), "whether test/ is a part"),
    "test/ and val/": (("test/cat", "val/cat"), "whether test/ and val/ are parts"),
    "other words": (("training_set/cat", "test_set/cat"), "whether training_set/ and test_set/ are parts"),
    "numbers": (("train1", "test1"), "whether train1/ and test1/ are parts"),
    "letters": (("trainA", "trainB", "testA", "testB"), "whether trainA/ and trainB/ and testA/ and testB/ are parts"),
    "words before": (("images_train", "imagestest", "unlabeled"), "images_train/ and imagestest/ .* beside unlabeled/"),
    "two training parts": (("train/cat", "Train/cat", "test/cat"), "Train/ and train/ are both names of the training"),
    "two test parts": (("train/cat", "test/cat", "testing/cat"), "test/ and testing/ are both names of the test part"),
    "a set in a folder": (("dataset/train/cat", "dataset/test/cat"), "dataset/ is no class: it holds test/, train/"),
    "a training part in a folder": (("dataset/train/cat", "dataset/train/dog"), "dataset/ is no class.*holds train/"),
    "two folders deep": (("a/b/train/cat", "a/b/test/cat"), "a/b/ is no class"),
    "several sets": (("x/train/cat", "x/test/cat", "y/train/cat", "y/test/cat"), "x/ is no class"),
    "classes before parts": (("cat/train", "cat/test", "dog/train", "dog/test"), "parts first, then the class"),
    "test/ in train/": (("train/cat", "train/dog", "train/test"), "whether train/test/ is a class or a part"),
    "train/ in train/": (("train/train", "test/test"), "whether train/train/ is a class or a part"),
    "empty test part": (("train/cat", "train/dog"), "no images in the folder test/"),
    "parts by other names": (("trn/cat", "trn/dog", "tst/cat", "tst/dog"), r"trn/, tst/ have the same folders inside"),
    "domains": (("art/cat", "art/dog", "art/x", "photo/cat", "photo/dog"), r"same folders inside \(cat, dog\)"),
    "a chain of folders": (("a/b/cat", "a/b/dog"), r"only folder there, a/b/, has 2 folders \(cat, dog\).*/a/b; if"),
    "a chain in a part": (("train/images/cat", "train/images/dog"), "train/images/, has 2 .*move them up into train/;"),
    "masks": (("images", "masks"), "whether images/ is a class, beside masks/.*/images; if they are classes"),
    "annotations": (("train/JPEGImages", "train/Masks"), "whether JPEGImages/ is a class.*move them up into train/;"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_folder_is_an_error_with_advice(tmp_path, name):
    folders, named = AMBIGUOUS[name]
    if name.startswith("empty"):
        (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match=named) as error:
        load_images(make(tmp_path, *folders))
    assert "--" in str(error.value) or "keep one" in str(error.value)


def test_the_advice_of_the_errors_works(tmp_path):
    root = make(tmp_path / "a set", "train", "cat", "dog")
    with pytest.raises(InputError) as error:
        load_images(root)
    assert f"--data '{root}/train'" in str(error.value)  # as a shell reads it
    assert load_images(root / "train").y_train is None
    assert labels(load_images(root, classes="folders"))[0] == [0, 1, 2]
    assert len(load_images(root, classes="none").x_train) == 7
    set_in_folder = make(tmp_path / "b", "dataset/Train/cat", "dataset/Test/cat")
    assert "from Train/" in load_images(set_in_folder / "dataset").summary
    wrong = make(tmp_path / "c", "train/cat", "train/test", "test/cat", "test/test")
    assert labels(load_images(wrong, classes="folders")) == [[0, 1], [0, 1]]
    assert load_images(make(tmp_path / "d", "test/cat", "test/dog") / "test").classes == 2


def test_classes_that_only_sound_like_parts(tmp_path):
    """CIFAR-100 has a class called train, Places a train_station."""
    hundred = make(tmp_path / "a", *(f"{part}/{name}" for part in ("train", "test") for name in ("apple", "train")))
    assert labels(load_images(hundred)) == [[0, 1], [0, 1]]
    assert load_images(hundred / "train").classes == 2
    names = ("beach", "test_tube", "lake", "train_station", "park")
    assert load_images(make(tmp_path / "b", *names, images=9)).classes == 5
    assert load_images(make(tmp_path / "c", "bird/train", "bird/crow", "fish/carp")).classes == 2


def test_nested_classes_are_the_first_folder_and_reported(tmp_path):
    data = load_images(make(tmp_path, "pet/cat", "pet/dog", "wild/fox", images=4))
    assert data.classes == 2 and "folders inside a class belong to it (pet/cat/, pet/dog/, ...)" in data.summary


def test_the_same_name_in_two_spellings_of_unicode_is_one_class(tmp_path):
    """macOS writes an accent as a separate character."""
    data = load_images(make(tmp_path, "train/caf\u00e9", "train/x", "test/cafe\u0301", "test/x"))
    assert labels(data) == [[0, 1], [0, 1]] and data.summary.count("caf\u00e9") == 1


def test_links_between_parts_and_deep_sets_can_be_said(tmp_path):
    deep = make(tmp_path / "a", "Data/CLS/train/x", "Data/CLS/train/y", "Data/CLS/val/x", "Data/CLS/val/y")
    with pytest.raises(InputError) as error:
        load_images(deep)
    assert f"--data {deep}/Data/CLS;" in str(error.value)
    assert labels(load_images(deep / "Data" / "CLS")) == [[0, 1], [0, 1]]
    kaggle = make(tmp_path / "b", "train/train/x", "train/train/y", "test1/test1")
    with pytest.raises(InputError, match=f"--data {kaggle}/train.*as one set without classes: --classes none"):
        load_images(kaggle)
    assert labels(load_images(kaggle / "train"))[0] == [0, 1]
    assert load_images(kaggle / "train" / "train").classes == 2


def test_empty_class_folders_are_reported_and_take_no_number(tmp_path):
    root = make(tmp_path, *STRAY)
    (root / "train" / "bird").mkdir()
    data = load_images(root)
    assert labels(data) == [[0, 1], [0, 1]] and "no images in train/bird/" in data.summary


def test_names_of_classes_that_differ_in_case_or_spaces(tmp_path):
    """Handwritten letters have the classes A and a; the classes Cat and cat of two parts are most likely one."""
    data = load_images(make(tmp_path / "a", "A", "a", "b"))
    assert data.classes == 3 and "classes whose names differ only in case or spaces: A, a" in data.summary
    with pytest.raises(InputError, match=r"cat, dog .3 images in test/cat/; train/ has 'Cat ', spelled otherwise"):
        load_images(make(tmp_path / "b", "train/Cat ", "train/Dog", "test/cat", "test/dog"))


def test_pipes_are_not_read(tmp_path):
    make(tmp_path, "cat", "dog")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    data = load_images(tmp_path)
    assert len(data.files) == 6 and "1 not a regular file (cat/pipe.png)" in data.summary


def test_classes_that_are_only_held_out_are_named(tmp_path):
    data = load_images(make(tmp_path, "ant", "bee", "cat", images=1))
    assert data.summary.endswith("test images of classes without training images: cat")


def test_one_class_is_reported(tmp_path):
    assert "6 images of 1 class (cat)" in load_images(make(tmp_path, "cat", images=6)).summary


def test_links_to_the_other_part_are_refused(tmp_path):
    root = make(tmp_path / "a", "train/cat", "train/dog")
    (root / "test").symlink_to(root / "train")
    with pytest.raises(InputError, match="links make 6 files both .* and a test image .test/cat/0.png is train/cat"):
        load_images(root)
    twice = make(tmp_path / "b", "cat", "dog")
    (twice / "also").symlink_to(twice / "cat")
    assert "3 images there more than once, through links" in load_images(twice).summary
    hard = make(tmp_path / "c", *STRAY)
    (hard / "test" / "cat" / "9.png").hardlink_to(hard / "train" / "cat" / "0.png")
    with pytest.raises(InputError, match="links make 1 file both"):
        load_images(hard)


def test_a_folder_that_cannot_be_listed_is_an_error():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as place:  # not in pytest's folder, which only its owner can enter
        root = make(Path(place), "cat", "dog")
        root.chmod(0o755)
        load_images(root)  # import everything that a reader needs while everything is readable
        (root / "dog").chmod(0)
        try:
            if user == 0:
                try:
                    os.seteuid(65534)  # root reads every folder
                except OSError:
                    pytest.skip("ONLY ROOT IS HERE, WHO READS EVERY FOLDER: one without permission was not tried")
            with pytest.raises(InputError, match=r"the folder .*/dog cannot be read \(Permission denied\)"):
                load_images(root)
        finally:
            os.seteuid(user)
            (root / "dog").chmod(0o755)


def test_runs_in_the_folder_of_the_images_are_no_images(tmp_path):
    files = [f"runs/a/{name}" for name in ("log.jsonl", "run.json", "loss.png", "checkpoints/x.png")]
    files += [f"demo/{name}" for name in ("log.jsonl", "results.json", "contact-sheet.png")]
    plain, used = make(tmp_path / "a", "cat", "dog"), make(tmp_path / "b", "cat", "dog", extra=files)
    one, other = load_images(plain), load_images(used)
    assert one.fingerprint == other.fingerprint and labels(one) == labels(other)
    assert "no images in demo/, runs/" in other.summary and "6 of a run of ssdd" in other.summary


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path / "photos", "cat", "dog"))
    assert load_images(".").name == "photos" and load_images(".").summary.startswith("photos: 6 images")


def test_the_summary_is_one_line_whatever_the_names(tmp_path):
    root = make(tmp_path, "a b", "it's", "caf\u00e9", extra=["two\nlines.txt", "\x1b[31mred.txt"])
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.csv")).write_text("")
    output = load_images(root).summary
    assert output.isprintable() and "(a b, caf\u00e9, it's)" in output and "\\udcff.csv" in output
    assert "\\x1b[31mred.txt" in output


def test_grey_among_colour_is_reported(tmp_path):
    root = make(tmp_path, "cat")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "cat" / "grey.png")
    assert "1 grey image among colour ones, read as colour" in load_images(root).summary


def test_other_sources_have_a_summary_too(tmp_path):
    assert ssdd.load_images("digits").summary == (
        "digits: 1,797 images of 10 classes, embedded in scikit-learn, 500 of them held out for testing"
    )
    x = np.zeros((10, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, z=x)
    assert load_images(tmp_path / "a.npz").summary == (
        "a: 10 images without classes (no y_train), one in five of them held out for testing (no x_test); "
        "arrays not read: z"
    )
    np.savez(tmp_path / "c.npz", x_train=x, y_train=np.arange(10) % 2, x_test=x[:3], y_test=np.arange(3))
    assert load_images(tmp_path / "c.npz").summary.endswith("test images of classes without training images: 2")
    np.savez(tmp_path / "b.npz", x_train=x, y_train=np.arange(10) % 2, x_test=x[:3])
    assert load_images(tmp_path / "b.npz").summary == (
        "b: 10 training images of 2 classes (y_train), 3 test images without labels (no y_test) (x_test)"
    )
