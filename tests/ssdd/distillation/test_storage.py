"""Storage of distilled images, and fixed transforms: each is its formula, learns, resumes and is in the artifact."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from ssdd.artifact import TRANSFORMS, DistilledSet, transformed
from ssdd.checkpoint import Checkpoints, Stopped
from ssdd.config import STORAGE_NAMES, BasesConfig, DistillConfig, InputError, PyramidConfig
from ssdd.data import ImageSet
from ssdd.distillation import Job, distill
from ssdd.distillation.loop import begin, inputs
from ssdd.distillation.storage import STORAGES, Source, image_count, stored_in
from ssdd.distillation.storage._resize import enlarge
from ssdd.distillation.storage.pyramid import level_sizes
from ssdd.selection import random_subset


@pytest.fixture(scope="module")
def job(few, representations, make, teacher, small):
    """job(**changes): of the 400 digits, with a teacher where one is needed."""

    def build(**changes):
        quick = {"steps": 12, "log_every": 4, "pool_steps": 6}
        config = dataclasses.replace(small.distill, **quick | changes)
        labels = config.method != "krr-st"
        known = None if labels else representations.train
        of = teacher if config.needs_teacher and not labels else None
        return Job(few, known, lambda: make(10 if labels else 16), config, seed=3, teacher=of)

    return build


@pytest.fixture(scope="module")
def colours():
    """200 colour images of 9x6 whose colours vary together."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand(200, 9, 6, 1, generator=g) * 150 + torch.rand(200, 9, 6, 3, generator=g) * 80
    return ImageSet("colours", pixels.to(torch.uint8), pixels[:5].to(torch.uint8))


def pixels_of(data, rows):
    return data.x_train[rows].permute(0, 3, 1, 2).float().div(255)


def made(name, data, targets, rows, **changes):
    """The storage ``name`` for some training images and their targets."""
    source = Source(DistillConfig(**changes), data, targets, seed=1)
    return STORAGES[name].make(source, pixels_of(data, rows), targets[rows], True, torch.device("cpu"))


def test_changes_of_resolution_are_bilinear():
    x = torch.randn(2, 3, 5, 3, dtype=torch.float64)
    expected = F.interpolate(x, size=(9, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarge(x, (9, 6)), expected)


def test_bases_are_principal_components_at_half_the_resolution(colours):
    targets, rows = torch.randn(200, 7, generator=torch.Generator().manual_seed(2)), torch.tensor([3, 8, 50])
    storage = made("bases", colours, targets, rows, bases=BasesConfig(images=6, targets=3))
    low = F.adaptive_avg_pool2d(pixels_of(colours, slice(None)).double(), (5, 3))
    for points, name, count in ((low.flatten(1), "x", 6), (targets.double(), "y", 3)):
        mean = points.mean(0)
        _, deviations, axes = torch.linalg.svd(points - mean, full_matrices=False)
        basis = storage.constants[f"{name}_basis"].flatten(1).double()
        torch.testing.assert_close(storage.constants[f"{name}_mean"].flatten().double(), mean, rtol=1e-5, atol=1e-5)
        lengths = deviations[:count] / 200**0.5  # the standard deviation along each axis
        torch.testing.assert_close(basis.norm(dim=1), lengths, rtol=1e-4, atol=1e-5)
        cosines = (basis / basis.norm(dim=1, keepdim=True) * axes[:count]).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-4, atol=0)
        projected = mean + (points[rows] - mean) @ axes[:count].mT @ axes[:count]
        if name == "y":
            torch.testing.assert_close(storage.targets().double(), projected, rtol=1e-4, atol=1e-4)
        else:
            shown = F.interpolate(projected.view(3, 3, 5, 3), size=(9, 6), mode="bilinear", align_corners=False)
            torch.testing.assert_close(storage.images().double(), shown, rtol=1e-4, atol=1e-4)


def test_all_components_at_the_full_resolution_are_the_images(colours):
    targets, rows = torch.randn(200, 7), torch.arange(5)
    storage = made("bases", colours, targets, rows, bases=BasesConfig(images=162, targets=7, shrink=1))
    torch.testing.assert_close(storage.images(), pixels_of(colours, rows), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(storage.targets(), targets[rows], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("decorrelate", [True, False])
def test_a_pyramid_is_a_sum_of_resolutions_in_colours_that_do_not_vary_together(colours, decorrelate):
    targets, rows = torch.randn(200, 7), torch.arange(200)
    storage = made("pyramid", colours, targets, rows, pyramid=PyramidConfig(levels=3, decorrelate=decorrelate))
    assert [tuple(storage.values[f"x_{i}"].shape[2:]) for i in range(3)] == [(9, 6), (5, 3), (3, 2)]
    z = sum(
        F.interpolate(storage.values[f"x_{i}"], size=(9, 6), mode="bilinear", align_corners=False) for i in range(3)
    )
    matrix, mean = storage.constants["colour"], storage.constants["mean"]
    shown = (matrix @ z.flatten(2)).view_as(z) + mean.view(3, 1, 1)
    torch.testing.assert_close(storage.images(), shown, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shown, pixels_of(colours, rows), rtol=1e-4, atol=1e-4)  # it starts from the images
    assert torch.equal(storage.targets(), targets)
    covariance = torch.cov(z.detach().transpose(0, 1).flatten(1))
    expected = torch.cov(pixels_of(colours, rows).transpose(0, 1).flatten(1)) if not decorrelate else torch.eye(3)
    torch.testing.assert_close(covariance, expected, rtol=0.01, atol=0.01)
    coarsest = F.adaptive_avg_pool2d(z, (3, 2))
    torch.testing.assert_close(storage.values["x_2"], coarsest, rtol=1e-3, atol=2e-1)


def test_levels_end_at_one_pixel():
    assert level_sizes(9, (6, 3)) == [(6, 3), (3, 2), (2, 1), (1, 1)]


def test_pixels_are_the_images_themselves(few, representations):
    rows = torch.tensor([5, 7])
    storage = made("pixels", few, representations.train, rows)
    assert torch.equal(storage.images(), pixels_of(few, rows))
    assert storage.images() is storage.parameters()["x_s"] and storage.targets() is storage.parameters()["y_s"]


@pytest.mark.parametrize("name", STORAGE_NAMES)
def test_a_budget_counts_all_that_is_stored(colours, name):
    targets = torch.randn(200, 7)
    small = {"bases": BasesConfig(images=6, targets=3), "pyramid": PyramidConfig(levels=3), "storage": name}
    rows = torch.arange(20)
    storage = made(name, colours, targets, rows, **small)
    config = DistillConfig(**small, budget=storage.bytes)
    assert image_count(config, colours, 7) == 20
    assert image_count(dataclasses.replace(config, budget=storage.bytes - 1), colours, 7) == 19
    assert image_count(dataclasses.replace(config, budget=0, images=5), colours, 7) == 5
    with pytest.raises(InputError, match=r"distill\.budget: expected at least .* bytes, what one image takes"):
        image_count(dataclasses.replace(config, budget=10), colours, 7)


def test_in_the_same_bytes_there_are_more_images_in_bases(job, few):
    bytes_of_ten = 4 * 10 * (64 + 16)
    counts = {}
    for name in ("pixels", "bases"):
        found = distill(job(storage=name, budget=bytes_of_ten, bases=BasesConfig(images=8, targets=8), steps=4)).result
        assert found.storage["bytes"] <= bytes_of_ten and found.storage["kind"] == name
        counts[name] = len(found)
    assert counts == {"pixels": 10, "bases": 32}
    with pytest.raises(InputError, match="as many as 1,000,000 bytes hold"):
        distill(job(budget=1_000_000))


VARIANTS = [
    *({"storage": name} for name in STORAGE_NAMES),
    {"transforms": "rotations"},
    {"storage": "bases", "transforms": "flip"},
    {"storage": "pyramid", "targets": "fixed"},
    {"storage": "bases", "targets": "fixed"},
    {"method": "frepo", "transforms": "dihedral"},
    {"method": "dm", "transforms": "flip", "storage": "pyramid"},
    {"transforms": "flip", "targets": "tied", "support_view": "augmented"},
    {"storage": "bases", "held_out": 40, "readout_every": 5, "readout_steps": 4},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_it_learns_resumes_and_is_in_the_artifact(job, changes, tmp_path):
    whole, stops = distill(job(**changes)), []
    with pytest.raises(Stopped):
        distill(job(**changes), checkpoints=Checkpoints(tmp_path, stop=lambda: stops.append(1) or len(stops) > 8))
    rest = distill(job(**changes), checkpoints=Checkpoints(tmp_path)).result
    result = whole.result
    assert torch.equal(result.images, rest.images) and torch.equal(result.targets, rest.targets)
    assert not torch.equal(result.images[:12], whole.snapshots[0])

    pairs = DistilledSet.load(result.save(tmp_path / "set.safetensors"))
    assert torch.equal(pairs.images, result.images) and torch.equal(pairs.targets, result.targets)
    assert pairs.storage == result.storage and pairs.storage["kind"] == changes.get("storage", "pixels")
    stored = stored_in(pairs)
    versions = transformed(pairs.storage["transforms"], stored.images())
    assert torch.equal(versions, pairs.images) and torch.equal(stored.targets(), pairs.targets)
    assert stored.bytes == pairs.storage["bytes"] and not stored.parameters()

    short = DistilledSet.load(result.save(tmp_path / "compact.safetensors", compact=True))
    count = len(stored.images())
    assert torch.equal(short.images, transformed(pairs.storage["transforms"], short.images[:count]))
    span = result.images.amax((2, 3), keepdim=True) - result.images.amin((2, 3), keepdim=True)
    assert bool(((short.images - result.images).abs() <= span.clamp(min=1) / 510 + 1e-6).all())


@pytest.mark.parametrize("changes", [{"storage": n} for n in STORAGE_NAMES] + [{"transforms": "rotations"}], ids=str)
def test_steps_lower_the_loss(job, changes):
    found = distill(job(images=20, lr=0.02, steps=80, log_every=20, pool_steps=40, **changes)).losses
    assert found[-1][1] < 0.9 * found[0][1]


def test_targets_are_learned_or_not(job):
    for name in STORAGE_NAMES:
        fixed = distill(job(storage=name, targets="fixed"))
        state, _ = begin(job(storage=name, targets="fixed"))
        assert (
            torch.equal(fixed.result.targets, state.y_s) and len(state.storage.parameters()) == len(state.values()) - 1
        )
    with pytest.raises(InputError, match="targets: 'tied' targets are those of the learned images"):
        job(storage="bases", targets="tied")


def test_transforms_are_what_their_names_say():
    x = torch.randn(2, 1, 4, 4)
    quarter = [torch.rot90(x, k, (2, 3)) for k in range(4)]
    assert torch.equal(transformed("none", x), x)
    assert torch.equal(transformed("flip", x), torch.cat([x, x.flip(3)]))
    assert torch.equal(transformed("rotations", x), torch.cat(quarter))
    eight = transformed("dihedral", x).view(8, 2, 1, 4, 4)
    expected = [*quarter, *(torch.rot90(x.flip(3), k, (2, 3)) for k in range(4))]
    assert all(any(torch.equal(a, b) for b in eight) for a in expected)
    assert list(TRANSFORMS) == ["none", "flip", "rotations", "dihedral"]


def test_each_transform_has_a_target_of_its_own_that_starts_from_the_teacher(job, few, teacher, representations):
    run = job(transforms="rotations")
    state, _ = begin(run)
    rows = random_subset(400, 12, 3)
    x = pixels_of(few, rows)
    expected = teacher(few.preprocessing.normalise(torch.cat([torch.rot90(x, k, (2, 3)) for k in range(4)])))
    torch.testing.assert_close(state.y_s.detach(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(state.y_s[:12], representations.train[rows])
    assert inputs(run, state).shape == (48, 1, 8, 8) and state.x_s.shape == (12, 1, 8, 8)
    moved = (distill(run).result.targets - state.y_s.detach()).view(4, 12, -1)
    assert float((moved[0] - moved[1]).abs().max()) > 1e-3  # the targets move apart
    result = distill(run).result
    assert len(result) == 48 and torch.equal(result.images[12:24], torch.rot90(result.images[:12], 1, (2, 3)))
    with pytest.raises(InputError, match="transforms and the method .clp-dd. need the teacher itself"):
        distill(dataclasses.replace(run, teacher=None))


def test_images_that_are_not_square_have_no_rotations(colours, make):
    wide = Job(colours, torch.zeros(200, 4), lambda: make(4), DistillConfig(images=5, transforms="rotations"))
    with pytest.raises(InputError, match=r"distill\.transforms: 'rotations' needs square images, got 9x6"):
        distill(wide)


def rewritten(file, **changes):
    """The artifact with other words on its storage."""
    with safe_open(file, framework="pt") as opened:
        meta = json.loads(opened.metadata()["ssdd"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    meta["storage"] |= changes
    save_file(tensors, file, metadata={"ssdd": json.dumps(meta)})


@pytest.mark.parametrize("changes", [{"kind": "splats"}, {"version": 2}])
def test_a_storage_of_a_newer_version_is_refused(job, tmp_path, changes):
    file = distill(job(storage="bases", steps=2)).result.save(tmp_path / "set.safetensors")
    rewritten(file, **changes)
    with pytest.raises(InputError, match="this ssdd knows bases, pixels, pyramid up to version 1; install the version"):
        DistilledSet.load(file)
    rewritten(file, version="two")
    with pytest.raises(InputError, match="damaged metadata"):
        DistilledSet.load(file)


def test_a_set_that_was_not_distilled_has_no_storage(few, representations):
    pairs = DistilledSet(pixels_of(few, slice(3)), representations.train[:3], few.preprocessing)
    with pytest.raises(InputError, match="expected a set that was distilled"):
        stored_in(pairs)


def test_reading_needs_none_of_it(job, tmp_path):
    file = distill(job(storage="pyramid", steps=2)).result.save(tmp_path / "set.safetensors")
    code = (
        "import sys; from ssdd.artifact import DistilledSet; p = DistilledSet.load(sys.argv[1]); "
        "assert len(p) == 12 and not [m for m in sys.modules if m.startswith('ssdd.distillation')]"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_network_predicts_the_targets_of_transformed_versions(job):
    bases = BasesConfig(images=12, targets=8, hidden=4)
    start = job(storage="bases", transforms="rotations", bases=bases, images=20, steps=0)
    first = stored_in(distill(start).result)
    values = {name: value.double() for name, value in first.values.items()}
    assert {name: list(value.shape) for name, value in values.items()} == {
        "c_x": [20, 12],
        "c_y": [20, 8],
        "w_in": [8, 4],
        "b_in": [4],
        "w_out": [4, 24],
        "b_out": [24],
    }
    c_y = values["c_y"]
    moved = (c_y @ values["w_in"] + values["b_in"]).clamp_min(0) @ values["w_out"] + values["b_out"]
    expected = torch.cat([c_y, *(c_y + moved[:, 8 * i : 8 * i + 8] for i in range(3))])
    expected = first.constants["y_mean"].double() + expected @ first.constants["y_basis"].double()
    torch.testing.assert_close(first.targets().double(), expected, rtol=1e-4, atol=1e-5)
    apart = stored_in(
        distill(
            dataclasses.replace(
                start, config=dataclasses.replace(start.config, bases=BasesConfig(images=12, targets=8))
            )
        ).result
    ).targets()
    fitted, alone = (first.targets() - apart).square().sum(), (apart[:20].repeat(4, 1) - apart).square().sum()
    assert float(fitted) < 0.9 * float(alone)  # it begins nearer to the teacher than the image's own target is
    config = dataclasses.replace(start.config, budget=first.bytes)
    assert image_count(config, start.data, 16) == 20
    run = distill(dataclasses.replace(start, config=dataclasses.replace(start.config, steps=4))).result
    learned = stored_in(run)
    assert all(not torch.equal(learned.values[name], first.values[name]) for name in first.values)
    assert torch.equal(learned.targets(), run.targets) and len(run) == 80
