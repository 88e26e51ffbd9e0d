"""Sets of the hub whose labels are no classes, or are missing in a part: read without labels, with the reason in the
summary."""

import datetime

import numpy as np
import pytest
from PIL import Image

from ssdd.config import InputError
from ssdd.data import load_images

hub = pytest.importorskip("datasets", reason="THE OPTIONAL LIBRARY `datasets` IS NOT HERE: no hf:... set was read")

ABC = hub.ClassLabel(names=["a", "b", "c"])
WHOLE, REAL, TEXT, BOOL = (hub.Value(kind) for kind in ("int64", "float64", "string", "bool"))
LISTS = hub.Sequence(ABC)


def part(labels=None, kind=WHOLE, n=4, mode="RGB", column="label", width=8):
    """Return ``n`` random images; ``mode``: one for all, or one per image."""
    g = np.random.default_rng(n)
    modes = [mode] * n if isinstance(mode, str) else mode
    columns = {"image": [Image.fromarray(g.integers(0, 256, (8, width, 3), dtype=np.uint8)).convert(m) for m in modes]}
    kinds = {"image": hub.Image()}
    if labels is not None:
        columns[column], kinds[column] = labels, kind
    return hub.Dataset.from_dict(columns, features=hub.Features(kinds))


@pytest.fixture
def load(tmp_path):
    def call(**parts):
        hub.DatasetDict(parts).save_to_disk(tmp_path / "set")
        return load_images(f"hf:{tmp_path / 'set'}")

    return call


def values(y):
    return None if y is None else y.tolist()


@pytest.mark.parametrize(
    "train, test, y, y_test",
    [
        (part(list("abca"), TEXT), part(list("cb"), TEXT, 2), [0, 1, 2, 0], [2, 1]),
        (part(list("bacb"), TEXT), part(["z", "a"], TEXT, 2), [1, 0, 2, 1], [3, 0]),
        (part([2.0, 0.0, 1.0, 2.0], REAL), part([1.0, 0.0], REAL, 2), [2, 0, 1, 2], [1, 0]),
        (part([True, False, True, True], BOOL), part([False, True], BOOL, 2), [1, 0, 1, 1], [0, 1]),
        (part([0, 1, 2, 0], ABC), part(["c", "a"], TEXT, 2), [0, 1, 2, 0], [2, 0]),
        (part([0, 1, 2, 0], ABC), part([2, 0], WHOLE, 2), [0, 1, 2, 0], [2, 0]),
        (part([0, 1, 2, 0], WHOLE), part([2, 0], ABC, 2), [0, 1, 2, 0], [2, 0]),
        (part([1, 1, 2, 1], ABC), part([0, 2], hub.ClassLabel(names=["c", "b", "a"]), 2), [1, 1, 2, 1], [2, 0]),
        (part(["caf\u00e9", "b ", "b"], TEXT, 3), part(["cafe\u0301", "b"], TEXT, 2), [1, 0, 0], [1, 0]),
        (part([0, 1, 2, 0], WHOLE, column="Label"), part([1, 2], WHOLE, 2, column="Label"), [0, 1, 2, 0], [1, 2]),
        (
            part([0, 1, 1, 0], WHOLE).with_format("numpy"),
            part([1, 0], WHOLE, 2).with_format("torch"),
            [0, 1, 1, 0],
            [1, 0],
        ),
    ],
)
def test_labels_that_are_classes(load, train, test, y, y_test):
    data = load(train=train, test=test)
    assert (values(data.y_train), values(data.y_test)) == (y, y_test)
    assert "not used" not in data.summary and "without labels" not in data.summary


@pytest.mark.parametrize(
    "train, why",
    [
        (part([[0], [1, 2], [0], [1]], LISTS), "[0] is no class"),
        (part([0.5, 1.0, 2.0, 0.0], REAL), "0.5 is no class"),
        (part([1.0, float("inf"), 2.0, 0.0], REAL), "inf is no class"),
        (part([1.0, float("nan"), 2.0, 0.0], REAL), "1 image of 4 without a label"),
        (part([0, 1, -1, -1], ABC), "2 images of 4 without a label"),
        (part([0, 1, None, 0], WHOLE), "1 image of 4 without a label"),
        (part(["a", None, "b", "a"], TEXT), "1 image of 4 without a label"),
        (part([None] * 4, TEXT), "it holds no label"),
        (part(["a", " ", "b", ""], TEXT), "2 images of 4 without a label"),
        (part([-1] * 4, ABC), "its labels are withheld"),
        (part([0, 1, -5, 0], WHOLE), "-5 is no class"),
        (part([0, 1, 2**40, 0], WHOLE), f"{2**40} is no class"),
        (part([{"x": 1}] * 4, {"x": WHOLE}), "{'x': 1} is no class"),
        (part([datetime.date(2020, 1, 1)] * 4, hub.Value("date32")), "datetime.date(2020, 1, 1) is no class"),
    ],
)
@pytest.mark.parametrize("test", [part([0, 1], ABC, 2), part(None, n=2), None])
def test_labels_that_are_no_classes_are_left_out(load, train, test, why):
    data = load(train=train, **({} if test is None else {"test": test}))
    assert data.y_train is None and data.y_test is None and data.classes == 0
    assert f"; labels not used (column label): {why}" in data.summary and "without classes" in data.summary
    assert len(data.x_train) + len(data.x_test) == (4 if test is None else 6)


@pytest.mark.parametrize(
    "test, why",
    [
        (part(None, n=2), "it has no column label"),
        (part([0, 1], WHOLE, 2, column="kind"), "it has no column label"),
        (part([[0], [1]], LISTS, 2), "[0] is no class"),
        (part([0, -1], ABC, 2), "1 image of 2 without a label"),
        (part([-1, -1], ABC, 2), "its labels are withheld"),
    ],
)
def test_a_test_part_without_labels(load, test, why):
    data = load(train=part([0, 1, 2, 0], ABC), test=test)
    assert values(data.y_train) == [0, 1, 2, 0] and data.y_test is None
    assert f"2 test images without labels ({why}) from test" in data.summary


def test_other_labels_in_the_test_part(load):
    data = load(train=part(list("abca"), TEXT), test=part([0, 1], WHOLE, 2))
    assert values(data.y_train) == [0, 1, 2, 0] and data.y_test is None
    assert "without labels (they are of another kind than those of the part train)" in data.summary
    data = load(train=part(None), validation=part([0, 1], ABC, 2))
    assert data.y_train is None and data.y_test is None
    assert data.summary.endswith("; labels of validation not used: the part train has none")


def test_parts_in_any_case_and_what_is_not_read(load):
    two = part([0, 1, 2, 0], ABC, column="Label").add_column("text", list("abcd")).add_column("id", [1, 2, 3, 4])
    data = load(Train=two, Test=part([1, 2], ABC, 2, column="Label"))
    assert (values(data.y_train), values(data.y_test)) == ([0, 1, 2, 0], [1, 2])
    assert data.summary.endswith("from the part Train, 2 test images from Test; columns not read: text, id")


@pytest.mark.parametrize(
    "parts, why",
    [
        ({"test": part([0, 1, 2, 0], ABC)}, r"a part called train, got test; save the part.*hf:FOLDER"),
        ({"train": part(), "test": part(n=2, width=9)}, "--size"),
        (
            {"train": part().rename_column("image", "mask").add_column("x", [1] * 4).remove_columns("mask")},
            "column of i",
        ),
        (
            {"train": hub.concatenate_datasets([part(), part().rename_column("image", "mask")], axis=1)},
            "got image, mask; keep one of them",
        ),
    ],
)
def test_sets_that_cannot_be_read_say_what_to_do(load, parts, why):
    with pytest.raises(InputError, match=why):
        load(**parts)


def test_a_part_with_labels_serves_better(load):
    data = load(train=part([0, 1, 2, 0], ABC), test=part(None, n=2), validation=part([0, 1, 1], ABC, 3))
    assert values(data.y_test) == [0, 1, 1]
    assert data.summary.endswith("3 test images from validation; parts not read: test (it has no column label)")


@pytest.mark.parametrize(
    "train, test, channels, grey",
    [
        ("L", "L", 1, ""),
        ("RGB", "L", 3, "2 grey images among colour ones"),
        ("L", "RGB", 3, "4 grey images among"),
        ("L", ["L", "RGB"], 3, "5 grey images among colour ones, read as colour"),
        ("RGB", "RGB", 3, ""),
    ],
)
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_both_parts_have_the_same_channels(tmp_path, monkeypatch, train, test, channels, grey, memory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = {"train": part([0, 1, 2, 0], ABC, mode=train), "test": part([0, 1], ABC, 2, mode=test)}
    hub.DatasetDict(parts).save_to_disk(tmp_path / "set")
    data = load_images(f"hf:{tmp_path / 'set'}", memory=memory)
    assert data.x_train.shape == (4, 8, 8, channels) and data.x_test.shape == (2, 8, 8, channels)
    expected = [np.asarray(image.convert("L" if channels == 1 else "RGB")) for image in parts["test"]["image"]]
    assert np.array_equal(data.x_test.numpy().squeeze(), np.stack(expected))
    assert grey in data.summary and ("grey" in data.summary) == bool(grey)
