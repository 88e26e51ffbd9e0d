"""Teachers from a user's weights: a ResNet in torchvision's form, or a state dict for the user's network."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ssdd
from ssdd.artifact import Preprocessing
from ssdd.config import InputError
from ssdd.models import standard_resnet
from ssdd.teachers import Teacher, represent


def weights(depths, bottleneck, channels=3, width=8, stem=7, seed=0):
    """Return random weights under torchvision's names; ``width`` replaces 64."""
    g, state = torch.Generator().manual_seed(seed), {}

    def convolution(name, outside, inside, side):
        state[f"{name}.weight"] = torch.randn(outside, inside, side, side, generator=g) / (inside * side * side) ** 0.5

    def norm(name, n):
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{key}"] = torch.rand(n, generator=g) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def both(at, i, outside, inside, side):
        convolution(f"{at}conv{i}", outside, inside, side)
        norm(f"{at}bn{i}", outside)

    both("", 1, width, channels, stem)
    inside = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            at, thin = f"layer{stage + 1}.{block}.", width << stage
            outside = 4 * thin if bottleneck else thin
            sides = (1, 3, 1) if bottleneck else (3, 3)
            for i, (side, out) in enumerate(zip(sides, [thin] * (len(sides) - 1) + [outside], strict=True), 1):
                both(at, i, out, inside if i == 1 else thin, side)
            if not block and (inside != outside or stage):
                convolution(f"{at}downsample.0", outside, inside, 1)
                norm(f"{at}downsample.1", outside)
            inside = outside
    return state


def by_hand(state, x, bottleneck, stem_padding=None):
    """Compute the same network written out, from He et al. (2016) with the stride in the 3x3 convolution."""

    def step(x, name, number, stride=1, padding=None):
        w = state[f"{name}conv{number}.weight"] if number else state[f"{name}downsample.0.weight"]
        n = f"{name}bn{number}" if number else f"{name}downsample.1"
        mean, var, scale, bias = (
            state[f"{n}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        padding = w.shape[-1] // 2 if padding is None else padding
        return (F.conv2d(x, w, stride=stride, padding=padding) - mean) / (var + 1e-5).sqrt() * scale + bias

    if stem_padding is None:
        x = F.max_pool2d(F.relu(step(x, "", 1, 2)), 3, 2, 1)
    else:  # of small images: stride 1, no max-pool
        x = F.relu(step(x, "", 1, 1, stem_padding))
    for at in dict.fromkeys(".".join(key.split(".")[:2]) + "." for key in state if key.startswith("layer")):
        stride = 2 if at.endswith(".0.") and not at.startswith("layer1") else 1
        y = F.relu(step(x, at, 1, 1 if bottleneck else stride))
        y = step(y, at, 2, stride if bottleneck else 1)
        y = step(F.relu(y), at, 3) if bottleneck else y
        x = F.relu(y + (step(x, at, 0, stride) if f"{at}downsample.0.weight" in state else x))
    return x.mean((2, 3))


@pytest.mark.parametrize("depths, bottleneck, dimension", [((3, 4, 6, 3), True, 256), ((2, 2, 2, 2), False, 64)])
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_a_resnet_in_torchvisions_form(tmp_path, depths, bottleneck, dimension, prefix):
    state = weights(depths, bottleneck)
    found = {prefix + key: value for key, value in state.items()} | {"module.projector.0.weight": torch.ones(2, 2)}
    torch.save({"epoch": 3, "model": found}, tmp_path / "resnet.pth")
    teacher = Teacher.named(str(tmp_path / "resnet.pth"), Preprocessing((0.5,), (0.5,)))
    assert teacher.preprocessing.mean == (0.485, 0.456, 0.406) and not teacher.module.training
    images = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    y = teacher.represent(images)
    assert y.shape == (3, dimension)
    torch.testing.assert_close(y, by_hand(state, teacher.preprocessing(images), bottleneck), rtol=1e-4, atol=1e-5)


def test_the_sizes_of_resnet50():
    network = standard_resnet(weights((3, 4, 6, 3), True, width=64) | {"fc.weight": torch.ones(10, 2048)})
    assert sum(p.numel() for p in network.parameters()) == 23_508_032  # torchvision's, less its classifier
    assert len(network.state_dict()) == 318


def test_weights_that_are_no_resnets(tmp_path):
    state = weights((1, 1, 1, 1), False)
    cases = {
        "torchvision's names": {"a": torch.ones(1)},
        "not the weights of": {k: v for k, v in state.items() if "layer3.0.bn2" not in k},
        "as torchvision writes it": state | {"layer2.0.conv1.weight": torch.ones(4)},
        "expected a state dict": {"a": 3},
    }
    for named, found in cases.items():
        torch.save(found, tmp_path / "x.pth")
        with pytest.raises(InputError, match=named) as error:
            Teacher.named(str(tmp_path / "x.pth"), Preprocessing((0.5,), (0.5,)))
        assert "teacher" in str(error.value) and "x.pth" in str(error.value)


def test_a_hostile_file_of_weights_is_refused_and_nothing_runs(tmp_path):
    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"conv1.weight": Hostile()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="teacher: x.pth: .*exec.*nothing in it was run") as error:
        Teacher.named(str(tmp_path / "x.pth"), Preprocessing((0.5,), (0.5,)))
    assert not (tmp_path / "ran").exists() and "weights_only" not in str(error.value)


def test_weights_for_a_network_of_the_users(tmp_path, monkeypatch, few):
    (tmp_path / "carried.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
        "def needs(a):\n    return net()\n"
        "def fails():\n    raise KeyError('where')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    torch.save(mine.state_dict(), tmp_path / "mine.pth")
    torch.save(nn.Linear(64, 4).state_dict(), tmp_path / "other.pth")
    teacher = Teacher.named(f"carried:net@{tmp_path / 'mine.pth'}", few.preprocessing)
    with torch.no_grad():
        assert torch.equal(teacher.represent(few.x_test), mine(few.preprocessing(few.x_test)))
    for name, named in (
        (f"net@{tmp_path / 'other.pth'}", "other.pth does not fit carried:net"),
        (f"net@{tmp_path / 'none.pth'}", "no such file"),
        ("needs", "needs cannot be made .TypeError"),
        ("fails", "fails cannot be made .KeyError"),
        ("absent", "the module carried has no absent; it is .*carried.py"),
    ):
        with pytest.raises(InputError, match=f"teacher: .*{named}"):
            Teacher.named(f"carried:{name}", few.preprocessing)
    monkeypatch.chdir(tmp_path)
    for name in ("carried.py:net", "./carried.py:net"):
        with pytest.raises(InputError, match="got '.*carried.py:net'; write carried:net"):
            Teacher.named(name, few.preprocessing)


def test_a_teacher_always_gets_its_own_normalisation(few, small, teacher, make):
    """A teacher trained on other images has another mean. The loop must call it in the same way as the cache does."""
    other = Teacher(teacher.module, Preprocessing((0.1,), (0.7,)))
    r = represent(other, few)
    x_s, y_s = {}, {}
    for how in ("cached", "recomputed"):
        config = dataclasses.replace(small.distill, steps=3, teacher_in_loop=how)
        pairs = ssdd.distill(ssdd.Job(few, r.train, lambda: make(r.dimension), config, teacher=other)).result
        x_s[how], y_s[how] = pairs.images, pairs.targets
    torch.testing.assert_close(x_s["cached"], x_s["recomputed"], rtol=0, atol=1e-3)
    torch.testing.assert_close(y_s["cached"], y_s["recomputed"], rtol=0, atol=1e-3)
    config = dataclasses.replace(small.distill, steps=1, targets="tied", pool=1, pool_steps=2)
    tied = ssdd.distill(ssdd.Job(few, r.train, lambda: make(r.dimension), config, teacher=other)).result
    torch.testing.assert_close(tied.targets, other(other.preprocessing.normalise(tied.images)), rtol=1e-4, atol=1e-4)
