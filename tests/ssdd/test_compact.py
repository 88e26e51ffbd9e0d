"""The compact form of a distilled set: what rounding costs, copies by transforms, files that are damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ssdd
from ssdd.artifact import TRANSFORMS, DistilledSet, Preprocessing, transformed
from ssdd.config import InputError
from ssdd.distillation.storage import stored_in


def example(transforms="flip", **changes) -> DistilledSet:
    """A set as a distillation leaves it: pixels from -0.2 to 1.2, and a target for each version of an image."""
    g = torch.Generator().manual_seed(0)
    x = transformed(transforms, torch.rand(6, 3, 8, 8, generator=g) * 1.4 - 0.2)
    y = torch.randn(len(x), 16, generator=g)
    pre = Preprocessing((0.4, 0.5, 0.1), (0.2, 0.3, 0.25))
    storage = {
        "kind": "pixels",
        "version": 1,
        "bytes": 4 * (6 * 3 * 64 + y.numel()),
        "transforms": transforms,
    }
    return DistilledSet(**{"images": x, "targets": y, "preprocessing": pre, "storage": storage, **changes})


def parts(file):
    with safe_open(file, "pt") as opened:
        return load_file(file), json.loads(opened.metadata()["ssdd"])


@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_rounding_is_bounded_and_copies_are_those_of_the_transforms(tmp_path, transforms):
    before = example(transforms)
    file = before.save(tmp_path / "set.safetensors", compact=True)
    after = DistilledSet.load(file)
    assert after.images.shape == before.images.shape and after.images.dtype == torch.float32
    span = before.images.amax((2, 3), keepdim=True) - before.images.amin((2, 3), keepdim=True)
    assert bool(((after.images - before.images).abs() <= span / 510 + 1e-6).all())
    assert torch.equal(after.images, transformed(transforms, after.images[:6]))
    assert torch.equal(after.targets, before.targets.half().float())
    assert after.storage == before.storage and after.bytes == before.bytes
    assert torch.equal(stored_in(after).images(), after.images[:6])
    numbers = 6 * 3 * 64 + 2 * before.targets.numel() + 2 * 4 * 6 * 3
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size == numbers + 8 + header


def test_pixels_of_real_images_and_labels_are_exact(tmp_path):
    g = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (256, 3, 8, 8), generator=g, dtype=torch.uint8)
    real[:, 0, 0, 0] = torch.arange(256)
    labels = torch.eye(4)[torch.randint(0, 4, (256,), generator=g)]
    before = example(images=real.float().div(255), targets=labels, target_kind="labels", storage={})
    after = DistilledSet.load(before.save(tmp_path / "set.safetensors", compact=True))
    assert torch.equal(after.images, before.images) and torch.equal(after.targets, labels)
    assert after.bytes == before.bytes and after.target_kind == "labels" and not after.storage


def test_a_channel_of_one_value_is_exact(tmp_path):
    before = example("none")
    before.images[1, 2] = -3.25
    before.images[2, 0] = 0.5
    after = DistilledSet.load(before.save(tmp_path / "set.safetensors", compact=True))
    assert bool((after.images[1, 2] == -3.25).all())
    assert bool(((after.images[2, 0] - 0.5).abs() <= 1 / 510 + 1e-7).all())


@pytest.mark.parametrize("change", [lambda y: y * 1e6, lambda y: y * 1e-7, lambda y: y + 1000])
def test_targets_that_16_bits_would_change_are_kept(tmp_path, change):
    before = example()
    before.targets = change(before.targets)
    after = DistilledSet.load(before.save(tmp_path / "set.safetensors", compact=True))
    assert torch.equal(after.targets, before.targets)


def test_versions_that_are_not_copies_are_kept(tmp_path):
    before = example()
    before.images[7] += 0.25  # the mirror image of image 1
    after = DistilledSet.load(before.save(tmp_path / "set.safetensors", compact=True))
    assert bool(((after.images - before.images).abs() <= 1.8 / 510).all())


def test_a_storage_becomes_pixels(tmp_path):
    storage = {"kind": "bases", "version": 1, "bytes": 99, "transforms": "flip"}
    before = example(storage=storage, stored={"coordinates": torch.zeros(3)})
    after = DistilledSet.load(before.save(tmp_path / "set.safetensors", compact=True))
    assert after.storage == storage | {"kind": "pixels", "bytes": 4 * (6 * 3 * 64 + 12 * 16)} and not after.stored


def test_it_can_be_written_again(tmp_path):
    first = DistilledSet.load(example().save(tmp_path / "a.safetensors", compact=True))
    exact = DistilledSet.load(first.save(tmp_path / "b.safetensors"))
    assert torch.equal(exact.images, first.images) and torch.equal(exact.targets, first.targets)
    again = DistilledSet.load(exact.save(tmp_path / "c.safetensors", compact=True))
    torch.testing.assert_close(again.images, first.images, rtol=0, atol=1e-6)


def test_the_program_writes_it_and_every_verb_reads_it(ssdd_command, tmp_path):
    whole = example().save(tmp_path / "whole.safetensors")
    printed = ssdd_command("export", whole, "-o", tmp_path / "out", "--form", "compact").output
    file = tmp_path / "out" / "distilled.safetensors"
    assert f"{file.stat().st_size:,} bytes ({whole.stat().st_size:,} before)" in printed and "0.00" in printed
    assert sorted(f.name for f in file.parent.iterdir()) == ["README.md", "distilled.safetensors"]
    assert "uint8" in (file.parent / "README.md").read_text()
    assert ssdd.info(file)["images"] == [12, 3, 8, 8]
    ssdd_command("pretrain", file, "-o", tmp_path / "w.safetensors", "--model", "convnet-4", "--steps", "1", "-q")
    assert (tmp_path / "w.safetensors").is_file()


def test_a_value_that_is_not_finite_is_refused(tmp_path):
    before = example()
    before.images[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match="images: values that are not finite"):
        before.save(tmp_path / "set.safetensors", compact=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage, why",
    [
        (lambda t, m: t.pop("images.low"), "lacks images, images.low or images.scale"),
        (lambda t, m: t.update(images=t["images"].float()), "images: expected uint8"),
        (lambda t, m: t.update({"images.scale": t["images.scale"][:5]}), r"images.scale: expected float32 \[6, 3\]"),
        (lambda t, m: t["images.scale"].zero_(), "images: values that are not finite"),
        (lambda t, m: t.update(targets=t["targets"][:11]), "targets: expected one per image"),
        (lambda t, m: m.update(compact={"transforms": "spin"}), "compact: expected transforms of none, flip"),
        (lambda t, m: m.update(compact=[]), "compact: expected transforms"),
        (lambda t, m: m.update(format_version=1), "images: expected floating point"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, why):
    file = example().save(tmp_path / "set.safetensors", compact=True)
    tensors, meta = parts(file)
    damage(tensors, meta)
    save_file(tensors, file, metadata={"ssdd": json.dumps(meta)})
    with pytest.raises(InputError, match=why):
        DistilledSet.load(file)


def test_the_committed_set_is_whole_and_small():
    file = Path(__file__).parents[2] / "docs" / "results" / "cifar10-set" / "distilled.safetensors"
    pairs = DistilledSet.load(file)
    assert pairs.images.shape == (400, 3, 32, 32) and pairs.targets.shape == (400, 512)
    assert torch.equal(pairs.images[200:], pairs.images[:200].flip(3))
    assert pairs.recipe["steps"] == 2500 and file.stat().st_size < 2**20
