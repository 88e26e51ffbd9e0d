"""The distilled set as a file: it is read back unchanged, and other files are refused."""

import ast
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ssdd.artifact
from ssdd.artifact import DistilledSet, Preprocessing, write_atomically
from ssdd.config import InputError


def example(**changes) -> DistilledSet:
    g = torch.Generator().manual_seed(0)
    fields = {
        "images": torch.rand(4, 3, 8, 8, generator=g) * 1.4 - 0.2,
        "targets": torch.randn(4, 5, generator=g),
        "preprocessing": Preprocessing((0.4, 0.5, 0.1), (0.2, 0.3, 0.25)),
        "seed": 3,
        "source": "somewhere",
        "config": {"steps": 7},
        "versions": {"torch": "x"},
        "metrics": {"loss": 0.25},
    }
    return DistilledSet(**{**fields, **changes})


@pytest.mark.parametrize("support_input", ["normalised", "raw"])
def test_roundtrip(tmp_path, support_input):
    before = example(support_input=support_input)
    after = DistilledSet.load(before.save(tmp_path / "set.safetensors"))
    assert torch.equal(before.images, after.images) and torch.equal(before.targets, after.targets)
    for key in ("preprocessing", "method", "seed", "source", "config", "versions", "metrics", "support_input"):
        assert getattr(before, key) == getattr(after, key), key
    assert torch.equal(before.inputs(), after.inputs())


def test_inputs_follow_support_input():
    normal, raw = example(), example(support_input="raw")
    assert torch.equal(raw.inputs(), raw.images)
    assert torch.allclose(normal.inputs()[:, 1], (normal.images[:, 1] - 0.5) / 0.3)


def test_preprocessing_of_stored_and_learned_images_agree():
    pre = Preprocessing((0.4, 0.5, 0.1), (0.2, 0.3, 0.25))
    stored = torch.randint(0, 256, (2, 6, 5, 3), dtype=torch.uint8)
    x = pre(stored)
    assert x.shape == (2, 3, 6, 5) and x.dtype == torch.float32
    assert torch.allclose(x, pre.normalise(stored.permute(0, 3, 1, 2).float() / 255))
    assert torch.allclose(pre.pixels(x), stored.permute(0, 3, 1, 2).float() / 255, atol=1e-6)
    with pytest.raises(InputError, match="uint8"):
        pre(stored.float())


@pytest.mark.parametrize("mean, std", [((float("inf"),), (1.0,)), ((0.0,), (float("inf"),)), ((0.0,), (0.0,))])
def test_preprocessing_that_no_image_survives(mean, std):
    with pytest.raises(InputError, match="finite"):
        Preprocessing(mean, std)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"images": torch.zeros(4, 8, 8)}, "images"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "images"),
        ({"targets": torch.zeros(3, 5)}, "targets"),
        ({"images": torch.zeros(0, 3, 8, 8), "targets": torch.zeros(0, 5)}, "at least one pair"),
        ({"images": torch.zeros(4, 1, 8, 8)}, "preprocessing"),
        ({"support_input": "upside down"}, "support_input"),
    ],
)
def test_parts_that_do_not_fit(changes, named):
    with pytest.raises(InputError, match=named):
        example(**changes)


def test_files_that_are_no_artifact(tmp_path):
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x80\x04not a tensor file")
    with pytest.raises(InputError, match="safetensors"):
        DistilledSet.load(garbage)
    with pytest.raises(InputError, match="no such file"):
        DistilledSet.load(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="expected a file, got a folder$"):
        DistilledSet.load(tmp_path)
    (tmp_path / "distilled.safetensors").touch()
    with pytest.raises(InputError, match=r"got a folder; give .*/distilled\.safetensors"):
        DistilledSet.load(tmp_path)
    other = tmp_path / "other.safetensors"
    save_file({"images": torch.zeros(1)}, other)
    with pytest.raises(InputError, match="distilled set"):
        DistilledSet.load(other)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(example().save(tmp_path / "whole.safetensors").read_bytes()[:-20])
    with pytest.raises(InputError):
        DistilledSet.load(torn)


def test_metadata_that_lies(tmp_path):
    meta = {"format": ssdd.artifact.FORMAT, "format_version": 1, "preprocessing": {"mean": "abc", "std": [1.0]}}
    file = tmp_path / "lies.safetensors"
    tensors = {"images": torch.zeros(1, 1, 2, 2), "targets": torch.zeros(1, 2)}
    save_file(tensors, file, metadata={"ssdd": json.dumps(meta)})
    with pytest.raises(InputError, match="damaged metadata"):
        DistilledSet.load(file)
    save_file(tensors, file, metadata={"ssdd": json.dumps({**meta, "format_version": 99})})
    with pytest.raises(InputError, match="version 99"):
        DistilledSet.load(file)


def header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,  # a header of 2^64 bytes
        header(b"{"),
        header(b"[" * 100_000),
        header(b'{"images": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"images": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', b"1234"),
        header(b'{"images": {"dtype": "F32", "shape": [1], "data_offsets": [96, 100]}}', b"1234"),
        header(b'{"__metadata__": {"ssdd": "%s"}}' % (b"[" * 100_000)),
        header(b'{"__metadata__": {"ssdd": "[1]"}}'),
        header(b'{"__metadata__": {"ssdd": "{"}}'),
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    ],
)
def test_hostile_safetensors_files_are_refused(tmp_path, content):
    file = tmp_path / "hostile.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"hostile\.safetensors"):
        DistilledSet.load(file)


def test_values_that_are_not_finite_and_fields_of_the_wrong_kind(tmp_path):
    file = tmp_path / "set.safetensors"
    example(targets=torch.full((4, 5), float("nan"))).save(file)
    with pytest.raises(InputError, match="targets: values that are not finite"):
        DistilledSet.load(file)
    example(seed="three").save(file)
    with pytest.raises(InputError, match="damaged metadata .*seed is a str"):
        DistilledSet.load(file)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "set.safetensors"
    example().save(file)
    before = file.read_bytes()
    with pytest.raises(TypeError):
        write_atomically(file, "not bytes")
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ssdd.artifact.files.flush_to_disk", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/set.safetensors'"):
        example().save(tmp_path / "set.safetensors")
    assert not list(tmp_path.iterdir())


def test_artifact_needs_no_training_code():
    for file in Path(ssdd.artifact.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text())
        above = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 1]
        assert set(above) <= {"config"}, file
