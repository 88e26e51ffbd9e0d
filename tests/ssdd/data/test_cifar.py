"""CIFAR's python pickles: as Python 2 wrote them, as Python 3 writes them, and hostile ones."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch

from ssdd.config import InputError
from ssdd.data import load_images
from ssdd.data.cifar import read_pickle


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def text(value: bytes) -> bytes:
    """Python 2's str: SHORT_BINSTRING or BINSTRING."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def as_python2(data: np.ndarray, labels: dict[str, list[int]]) -> bytes:
    """Write a dictionary with a NumPy array and lists, opcode by opcode as cPickle of Python 2 wrote the published
    files."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + number(0)
        + b"\x85"
        + text(b"b")
        + b"\x87R("
        + number(1)
        + number(data.shape[0])
        + number(data.shape[1])
        + b"\x86cnumpy\ndtype\n"
        + text(b"u1")
        + number(0)
        + number(1)
        + b"\x87R("
        + number(3)
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + number(0)
        + b"tb\x89"
        + text(data.tobytes())
        + b"tb"
    )
    lists = b"".join(text(k.encode()) + b"](" + b"".join(map(number, v)) + b"es" for k, v in labels.items())
    return b"\x80\x02}" + text(b"data") + array + b"s" + lists + b"."


def as_python3(data, labels):
    return pickle.dumps({b"data": data, **{k.encode(): v for k, v in labels.items()}}, protocol=2)


@pytest.mark.parametrize("write", [as_python2, as_python3])
def test_cifar10(tmp_path, write):
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(write(pixels(4, i), {"labels": [i, 1, 2, 9]}))
    data = load_images(tmp_path)
    assert data.name == "cifar10" and data.x_train.shape == (20, 32, 32, 3) and data.x_test.shape == (4, 32, 32, 3)
    assert data.y_train[::4].tolist() == [0, 1, 2, 3, 4] and data.y_test.tolist() == [5, 1, 2, 9]
    first = torch.from_numpy(pixels(4, 0)[0].reshape(3, 32, 32)).permute(1, 2, 0)  # planes of red, green, blue
    assert torch.equal(data.x_train[0], first)
    assert data.summary.startswith("cifar10: 20 training images from data_batch_1 to data_batch_5, 4 test images from")
    assert data.summary.endswith("test_batch, 6 classes (labels)")
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(InputError, match="data_batch_3"):
        load_images(tmp_path)


def test_cifar100_has_fine_labels(tmp_path):
    for name, n in (("train", 6), ("test", 3)):
        labels = {"fine_labels": list(range(90, 90 + n)), "coarse_labels": [0] * n}
        (tmp_path / name).write_bytes(as_python2(pixels(n), labels))
    data = load_images(tmp_path)
    assert data.name == "cifar100" and data.y_train.tolist() == [90, 91, 92, 93, 94, 95] and len(data.x_test) == 3


class Run:
    """Runs its call in an unrestricted unpickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "a call": lambda flag: pickle.dumps({b"data": Run(os.mkdir, flag)}, protocol=2),
    "a call among good things": lambda flag: pickle.dumps(
        {b"data": pixels(1), b"labels": [1], b"x": Run(os.mkdir, flag)}, protocol=2
    ),
    "eval": lambda flag: pickle.dumps(Run(eval, f"__import__('os').mkdir({flag!r})"), protocol=2),
    "numpy's own loader": lambda flag: b"cnumpy\nload\n(S'x'\ntR.",
    "an attribute of an admitted name": lambda flag: b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
    "state for an admitted name": lambda flag: b"c_codecs\nencode\n}S'a'\nK\x01sb.",
    "another codec": lambda flag: b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.",
    "an array of objects": lambda flag: pickle.dumps(
        {b"data": np.array([Run(os.mkdir, flag)], dtype=object)}, protocol=2
    ),
    "a persistent id": lambda flag: b"Pfile\n.",
    "an extension": lambda flag: b"\x82\x01.",
    "endless depth": lambda flag: b"]" * 100_000 + b"a" * 99_999 + b".",
    "a size that lies": lambda flag: b"\x80\x04B\xff\xff\xff\x7fxx.",
    "a place in the memo that lies": lambda flag: b"\x80\x02}r" + (2**27).to_bytes(4, "little") + b".",
    "nothing": lambda flag: b"",
    "half a file": lambda flag: as_python2(pixels(2), {"labels": [1, 2]})[:3000],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, kind):
    flag = tmp_path / "executed"
    (tmp_path / "data_batch_1").write_bytes(HOSTILE[kind](str(flag)))
    with pytest.raises(InputError, match="data_batch_1"):
        read_pickle(tmp_path / "data_batch_1")["labels"]  # depth alone is harmless: a list, refused as no dictionary
    assert not flag.exists()


def test_the_hostile_pickles_are_hostile(tmp_path):
    """Without the restriction the calls run, so the test above can fail."""
    for i, kind in enumerate(["a call", "a call among good things", "eval", "an array of objects"]):
        flag = tmp_path / f"executed {i}"
        pickle.loads(HOSTILE[kind](str(flag)))
        assert flag.exists()


@pytest.mark.parametrize(
    "content, named",
    [
        ({b"data": pixels(2)[:, :5], b"labels": [1, 2]}, r"\[N, 3072\], got \[2, 5\]"),
        ({b"data": pixels(2).astype(np.float32), b"labels": [1, 2]}, "f4"),
        ({b"labels": [1, 2]}, "got none"),
        ({b"data": pixels(2), b"labels": [1]}, "labels: expected a list of 2"),
        ({b"data": pixels(2), b"labels": ["a", "b"]}, "labels: expected a list of 2"),
        ([1, 2], "expected a dictionary, got list"),
    ],
)
def test_contents_that_do_not_fit(tmp_path, content, named):
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=named):
        load_images(tmp_path)
