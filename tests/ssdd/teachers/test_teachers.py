"""Teachers: training, files, the user's networks, and representations from the cache or a file."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssdd.artifact import Preprocessing
from ssdd.config import Diverged, InputError
from ssdd.data import CPU, ImageSet, augment, draw_crops, load_images
from ssdd.data.sets import hold_out
from ssdd.evaluation import standardise
from ssdd.models import ConvNet, seeded
from ssdd.teachers import Representations, Teacher, Views, read_representations, represent, train_teacher
from ssdd.teachers.methods import BYOL, barlow_loss, byol_loss, simclr_loss

PRE = Preprocessing((0.0,), (1.0,))


def test_barlow_loss_on_known_correlations():
    z = torch.eye(4).repeat(8, 1) @ torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # uncorrelated coordinates
    n = len(z)
    kept = (n - 1) / n  # the correlation of a coordinate with itself, std being the unbiased one
    assert float(barlow_loss(z, z, 0.5)) == pytest.approx(2 * (1 - kept) ** 2, abs=1e-3)
    assert float(barlow_loss(z, -z, 0.5)) == pytest.approx(2 * (1 + kept) ** 2, rel=1e-3)
    twice = z[:, :1].repeat(1, 2)  # a repeated coordinate: both off-diagonal terms are near 1
    assert float(barlow_loss(twice, twice, 0.5)) == pytest.approx(2 * 0.5 * kept**2, rel=1e-2)


def test_training_lowers_the_loss_and_is_deterministic(few, small, teacher):
    losses = []
    again = train_teacher(few, small.teacher, lambda e: losses.append(e["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert again.key() == teacher.key()


def test_training_makes_two_views_of_an_image_recognise_each_other(few, small, teacher):
    pixels = few.x_test.permute(0, 3, 1, 2).float() / 255
    g = torch.Generator().manual_seed(0)
    views = [few.preprocessing.normalise(augment(pixels, small.teacher.augment, g)) for _ in range(2)]

    def recognised(t: Teacher) -> float:
        a, b = standardise(*map(t, views))
        return float((torch.cdist(a, b).argmin(1) == torch.arange(len(a))).float().mean())

    torch.manual_seed(0)
    start = Teacher(ConvNet(1, (8, 8), small.teacher.widths, pooled=True), few.preprocessing)
    assert recognised(teacher) > recognised(start) + 0.1


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_the_other_methods_do_so_too(few, small, method):
    config = dataclasses.replace(small.teacher, method=method)
    losses = []
    trained = train_teacher(few, config, lambda e: losses.append(e["loss"]))
    assert losses[-1] < 0.9 * losses[0] and trained.about["method"] == method
    pixels = few.x_test.permute(0, 3, 1, 2).float() / 255
    g = torch.Generator().manual_seed(0)
    views = [few.preprocessing.normalise(augment(pixels, config.augment, g)) for _ in range(2)]
    start = Teacher(seeded(lambda: ConvNet(1, (8, 8), config.widths, pooled=True), config.seed), few.preprocessing)

    def recognised(t: Teacher) -> float:
        a, b = standardise(*map(t, views))
        return float((torch.cdist(a, b).argmin(1) == torch.arange(len(a))).float().mean())

    assert recognised(trained) > recognised(start)


def test_simclr_loss_against_the_formula():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, generator=g).double(), torch.randn(5, 3, generator=g).double()
    z = torch.cat([a, b]) / torch.cat([a, b]).norm(dim=1, keepdim=True)
    terms = []
    for i in range(10):
        others = [float(z[i] @ z[j]) / 0.3 for j in range(10) if j != i]
        terms.append(np.log(np.exp(others).sum()) - float(z[i] @ z[(i + 5) % 10]) / 0.3)
    assert float(simclr_loss(a, b, 0.3)) == pytest.approx(np.mean(terms))


def test_byol_predicts_its_moving_average(small):
    assert float(byol_loss(torch.eye(3), torch.eye(3) * 7)) == pytest.approx(0)
    assert float(byol_loss(torch.eye(3), -torch.eye(3))) == pytest.approx(4)
    backbone = ConvNet(1, (8, 8), (4, 6), pooled=True)
    method = BYOL(backbone, 6, dataclasses.replace(small.teacher, method="byol", ema=0.9))
    n = len(list(backbone.parameters()))
    for done, share in ((0.0, 0.1), (0.25, 0.1 * (1 + 2**-0.5) / 2), (0.5, 0.05), (1.0, 0.0)):
        method.slow[0].load_state_dict(backbone.state_dict())
        before = [p.clone() for p in method.slow.parameters()]
        with torch.no_grad():
            for p in backbone.parameters():
                p.add_(1.0)
        method.after_step(backbone, done)
        moved = [(a - b).abs().max() for a, b in zip(method.slow.parameters(), before, strict=True)]
        assert all(float(m) == pytest.approx(share, rel=1e-4) for m in moved[:n]) and not any(map(float, moved[n:]))
    assert not any(p.requires_grad for p in method.slow.parameters())
    method.loss(backbone, torch.randn(8, 1, 8, 8)).backward()
    assert all(p.grad is None for p in method.slow.parameters()) and backbone.blocks[0].weight.grad is not None


@pytest.mark.parametrize("backbone, training", [("resnet18", "float32"), ("resnet10", "bf16")])
def test_resnet_teachers_are_trained_and_read_back(tmp_path, few, small, backbone, training):
    some = ImageSet("some", few.x_train[:16], few.x_test[:4])
    config = dataclasses.replace(small.teacher, backbone=backbone, training=training, epochs=1, batch=8)
    trained = train_teacher(some, config)
    loaded = Teacher.load(trained.save(tmp_path / "t.safetensors"))
    assert loaded.key() == trained.key() and loaded.represent(some.x_test).shape == (4, 512)


def test_training_in_bf16_learns_like_float32(few, small):
    """The losses of the epochs agree up to the rounding of the forward pass, and the weights stay float32."""
    losses = {}
    for training in ("float32", "bf16"):
        kept = losses.setdefault(training, [])
        config = dataclasses.replace(small.teacher, training=training)
        events: list = []
        trained = train_teacher(few, config, events.append)
        kept.extend(event["loss"] for event in events if event["event"] == "teacher")
        assert {p.dtype for p in trained.module.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.05)


def test_diverging_teacher_stops(few, small):
    with pytest.raises(Diverged, match=r"teacher\.lr"):
        train_teacher(few, dataclasses.replace(small.teacher, lr=1e18, epochs=40))


def test_file_roundtrip(tmp_path, few, teacher):
    loaded = Teacher.load(teacher.save(tmp_path / "t.safetensors"))
    assert loaded.key() == teacher.key()
    assert torch.equal(loaded.represent(few.x_test), teacher.represent(few.x_test))
    assert loaded.on_size((8, 8)) == "" and "on images of 8x8, used on 16x24; use --size 8" in loaded.on_size((24, 16))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError):
        Teacher.load(tmp_path / "bad.safetensors")


class Mine(nn.Module):
    """A user's network; dropout shows whether it runs in eval mode."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 6))

    def forward(self, x):
        return self.net(x)


def test_a_module_of_the_users(few):
    t = Teacher(Mine(), few.preprocessing)
    y = t.represent(few.x_test)
    assert y.shape == (100, 6) and not y.requires_grad and torch.equal(y, t.represent(few.x_test))
    with pytest.raises(InputError, match="save your own"):
        t.save("never.safetensors")


@pytest.mark.parametrize(
    "module, named",
    [
        (nn.Identity(), "one vector per image"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), "cannot run on images"),
        (nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1))), "one vector per image"),
    ],
)
def test_teacher_output_that_does_not_match(few, module, named):
    with pytest.raises(InputError, match=named):
        Teacher(module, PRE).represent(few.x_test)


def test_teacher_output_that_is_not_finite(few):
    broken = Mine()
    nn.init.constant_(broken.net[2].bias, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        Teacher(broken, PRE).represent(few.x_test)


def test_teacher_by_name(tmp_path, monkeypatch, few):
    (tmp_path / "brought.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert Teacher.named("brought:net", few.preprocessing).represent(few.x_test).shape == (100, 3)
    for name in ("brought:missing", "no_such_module:net", "file.pt"):
        with pytest.raises(InputError, match="teacher"):
            Teacher.named(name, few.preprocessing)


def test_cache_is_used_and_its_key_is_weights_data_preprocessing(tmp_path, few, teacher):
    first = represent(teacher, few, tmp_path)
    [file] = tmp_path.iterdir()
    kept = first.train.clone()
    file.unlink()  # a mapped file must not be overwritten
    np.save(file, np.full((500, first.dimension), 7, np.float32))
    assert float(represent(teacher, few, tmp_path).train[0, 0]) == 7  # read, not computed
    file.unlink()
    file.write_bytes(b"torn")
    assert torch.equal(represent(teacher, few, tmp_path).train, kept)  # computed, and written again
    other_data = ImageSet("few", few.x_train.flip(0), few.x_test)
    represent(teacher, other_data, tmp_path)
    represent(Teacher(teacher.module, PRE), few, tmp_path)
    torch.manual_seed(1)
    represent(Teacher(ConvNet(1, (8, 8), (16, 16), pooled=True), few.preprocessing), few, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_representations_from_a_file_follow_the_sources_order(tmp_path):
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    data = hold_out("ten", images, None)
    np.save(tmp_path / "r.npy", np.arange(10, dtype=np.float64)[:, None])
    r = read_representations(tmp_path / "r.npy", data)
    assert isinstance(r, Representations) and r.train.dtype == torch.float32
    assert torch.equal(r.train[:, 0], data.x_train[:, 0, 0, 0].float())
    assert torch.equal(r.test[:, 0], data.x_test[:, 0, 0, 0].float())


def test_representations_of_the_training_images_alone(tmp_path, few):
    np.save(tmp_path / "r.npy", np.ones((400, 3), np.float32))
    r = read_representations(tmp_path / "r.npy", few)
    assert r.train.shape == (400, 3) and r.test is None


@pytest.mark.parametrize(
    "array, named",
    [
        (np.zeros((3, 2), np.float32), "expected 500 rows"),
        (np.zeros(500, np.float32), "rows, D"),
        (np.zeros((500, 2), np.int64), "floats"),
        (np.full((500, 2), np.nan, np.float32), "not finite"),
        (np.full((500, 2), 1e300), "too large for float32"),
        (np.zeros((500, 0), np.float32), "rows, D"),
        (np.array([{}], dtype=object), "plain numbers"),
    ],
)
def test_representations_that_do_not_fit(tmp_path, few, array, named):
    np.save(tmp_path / "r.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=named):
        read_representations(tmp_path / "r.npy", few)


def test_large_images_are_shown_to_a_teacher_a_few_at_a_time(few, monkeypatch):
    asked = []
    pooled = Teacher(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), PRE)
    before = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, x: asked.append(len(x)) or before(self, x))
    for side, n, expected in (
        (8, 600, [500, 100]),
        (32, 600, [500, 100]),
        (64, 300, [125, 125, 50]),
        (224, 25, [10, 10, 5]),
        (1024, 2, [1, 1]),
    ):
        asked.clear()
        images = torch.randint(0, 256, (n, side, side, 1), dtype=torch.uint8)
        mean = images.float().mean((1, 2)) / 255
        torch.testing.assert_close(pooled.represent(images), mean)
        assert asked == expected
        asked.clear()
        data = ImageSet("set", images, images[:1])
        crops = draw_crops(n, 1, torch.Generator().manual_seed(0))
        views = Views(pooled.accepting(data.preprocessing), data, crops, 1, CPU)
        assert [len(part) for part in views.compute()] == asked == expected and views.parts() == len(expected)


def test_a_pickle_in_place_of_an_array_is_refused_without_advice_to_load_it(few, tmp_path):
    file = tmp_path / "r.npy"
    file.write_bytes(pickle.dumps([1]))
    for call in (lambda: read_representations(file, few), lambda: load_images(save_objects(tmp_path / "x.npz"))):
        with pytest.raises(InputError, match="nothing in it was run") as refused:
            call()
        assert "unsafely" not in str(refused.value) and "allow_pickle" not in str(refused.value)


def save_objects(file):
    np.savez(file, x_train=np.array([{}], dtype=object))
    return file


def in_file(tensor) -> bool:
    """Return True if the tensor's bytes lie in a mapped file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return len(line.split()) > 5 and line.split()[5].endswith(".npy")
    return False


def test_representations_are_mapped_from_the_cache_and_written_a_batch_at_a_time(tmp_path, few, teacher, monkeypatch):
    whole = represent(teacher, few)
    assert not in_file(whole.train)
    monkeypatch.setattr("ssdd.teachers.teacher.BATCH", 64)
    monkeypatch.setattr(torch, "cat", None)  # nothing is concatenated in memory
    for _ in range(2):  # computed, then found
        found = represent(teacher, few, tmp_path)
        assert in_file(found.train) and in_file(found.test)
        assert torch.allclose(found.train, whole.train, atol=1e-5) and torch.allclose(found.test, whole.test, atol=1e-5)
    monkeypatch.undo()
    np.save(tmp_path / "r.npy", whole.train.numpy())
    mine = read_representations(tmp_path / "r.npy", few)
    assert in_file(mine.train) and torch.equal(mine.train, whole.train)


def test_no_room_for_representations(tmp_path, few, teacher, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(InputError, match=r"no place for 32,000 bytes of representations \(No space left"):
        represent(teacher, few, tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_and_representing_on_another_device_is_a_matter_of_where_the_network_is(few, teacher):
    assert teacher.device == torch.device("cpu") and teacher.to(torch.device("cpu")) is teacher
    assert Teacher(nn.Flatten(), PRE).device == torch.device("cpu")
