"""Files of weights as users have them: which network is chosen from which file, for all names and orders."""

import argparse
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssdd.artifact import Preprocessing
from ssdd.config import InputError
from ssdd.teachers import Teacher
from ssdd.teachers.weights import is_average_of

from .test_brought import by_hand, weights

DATA = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
IMAGES = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def state(seed=0, stem=7):
    return weights((2, 2, 2, 2), False, stem=stem, seed=seed)


def under(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}


def saved(tmp_path, what, name="x.pth"):
    torch.save(what, tmp_path / name)
    return str(tmp_path / name)


def is_network(teacher, tensors):
    expected = by_hand(tensors, teacher.preprocessing(IMAGES), False)
    return torch.allclose(teacher.represent(IMAGES), expected, rtol=1e-4, atol=1e-5)


PAIRS = {  # the network that learns, its moving average
    "MoCo": ("encoder_q.", "encoder_k."),
    "MoCo, distributed": ("module.encoder_q.", "module.encoder_k."),
    "MoCo v3": ("module.base_encoder.", "module.momentum_encoder."),
    "BYOL": ("online_encoder.net.", "target_encoder.net."),
    "BYOL, lightning bolts": ("online_network.encoder.", "target_network.encoder."),
    "BYOL, mmselfsup": ("online_net.0.", "target_net.0."),
    "solo-learn": ("backbone.", "momentum_backbone."),
    "lightly": ("backbone.", "backbone_momentum."),
    "plain words": ("online.", "target."),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("online_first", [True, False])
def test_of_a_network_and_its_moving_average_the_network_is_taken(tmp_path, name, online_first):
    online, target = PAIRS[name]
    mine, other = state(1), state(2)
    parts = [under(online, mine), under(target, other)]
    both = dict(itertools.chain(*(p.items() for p in (parts if online_first else parts[::-1]))))
    file = saved(tmp_path, {"epoch": 3, "state_dict": both | {"queue": torch.ones(3)}})
    teacher = Teacher.named(file, DATA)
    assert is_network(teacher, mine) and not is_network(teacher, other)
    assert f"under state_dict.{online} (not its moving average state_dict.{target}" in teacher.summary
    assert teacher.about["prefix"] == f"state_dict.{online}" and "\n" not in teacher.summary
    for asked in (target, target.rstrip("."), f"state_dict.{target}"):
        assert is_network(Teacher.named(file, DATA, asked), other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("student.", "teacher."),
        ("model.", "ema."),
        ("a.", "b."),
        ("", "target."),
        ("encoder1.", "encoder2."),
        ("x.encoder.", "y.momentum_encoder."),
    ],
)
def test_other_pairs_are_an_error_that_lists_them(tmp_path, one, other):
    file = saved(tmp_path, under(one, state(1)) | under(other, state(2)))
    with pytest.raises(InputError, match="x.pth holds 2 different networks.*--teacher-prefix") as error:
        Teacher.named(file, DATA)
    assert all(prefix in str(error.value) for prefix in (one, other))
    assert is_network(Teacher.named(file, DATA, one), state(1))
    assert is_network(Teacher.named(file, DATA, other), state(2))
    with pytest.raises(InputError, match=r"teacher prefix: x.pth: expected one of .*got 'nobody' \(no network\)"):
        Teacher.named(file, DATA, "nobody")


def test_dictionaries_in_a_file_are_networks_too(tmp_path):
    """DINO's form. Neither the first network nor one with a usual name is chosen silently."""
    file = saved(tmp_path, {"student": under("module.backbone.", state(1)), "teacher": under("backbone.", state(2))})
    with pytest.raises(InputError, match="student.module.backbone., teacher.backbone."):
        Teacher.named(file, DATA)
    assert is_network(Teacher.named(file, DATA, "teacher.backbone"), state(2))
    three = under("encoder_q.", state(1)) | under("encoder_k.", state(2)) | under("encoder.", state(3))
    with pytest.raises(InputError, match="3 different networks"):
        Teacher.named(saved(tmp_path, three), DATA)


def test_the_same_network_under_two_names_is_one(tmp_path):
    """BYOL of lucidrains and MoCo of mmselfsup store the trained network under a second name."""
    found = under("net.", state(1)) | under("target_encoder.net.", state(2)) | under("online_encoder.net.", state(1))
    teacher = Teacher.named(saved(tmp_path, found), DATA)
    assert is_network(teacher, state(1)) and "moving average target_encoder.net." in teacher.summary
    teacher = Teacher.named(saved(tmp_path, {"model": state(1), "ema": state(1)}), DATA)
    assert is_network(teacher, state(1)) and "the same as ema." in teacher.summary
    ambiguous = under("a.net.", state(1)) | under("b.net.", state(2))
    with pytest.raises(InputError, match=r"got 'net' \(2 networks\)"):
        Teacher.named(saved(tmp_path, ambiguous), DATA, "net")


@pytest.mark.parametrize("name", ["x.pth.tar", "x.ckpt", "x.PTH", "x.pt", "x.bin", "2026-11-26T10:30.ckpt"])
def test_names_of_files(tmp_path, name):
    assert is_network(Teacher.named(saved(tmp_path, {"state_dict": under("backbone.", state())}, name), DATA), state())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "network", "teacher", "backbone"])
def test_names_of_dictionaries(tmp_path, key):
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    found = {"epoch": 1, key: under("module.", state()), "optimizer": optimizer, "best": torch.tensor(3.0)}
    assert is_network(Teacher.named(saved(tmp_path, found), DATA), state())


def test_a_resnet_in_a_sequential(tmp_path):
    """``nn.Sequential(*list(resnet.children())[:-1])``: numbers in place of names."""
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    numbered = {}
    for key, value in state().items():
        first, _, rest = key.partition(".")
        numbered[f"backbone.{places[first]}.{rest}"] = value
    projector = {"projector.0.weight": torch.ones(2, 2)}
    assert is_network(Teacher.named(saved(tmp_path, numbered | projector), DATA), state())


@pytest.mark.parametrize("start", [2, 3])
def test_a_resnet_in_a_sequential_without_max_pool(tmp_path, start):
    """SimCLR and lightly for CIFAR: the stages begin at 2 or 3, and the stem of their code has padding 1."""
    mine, numbered = state(3, stem=3), {}
    for key, value in mine.items():
        first, _, rest = key.partition(".")
        number = {"conv1": 0, "bn1": 1}.get(first, start - 1 + int(first[-1]) if first.startswith("layer") else None)
        numbered[f"f.{number}.{rest}"] = value
    teacher = Teacher.named(saved(tmp_path, numbered | {"g.0.weight": torch.ones(2, 2)}), DATA)
    expected = by_hand(mine, DATA(IMAGES), False, stem_padding=1)
    torch.testing.assert_close(teacher.represent(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert "padding 1" in teacher.summary


def test_a_resnet_with_shortcuts(tmp_path):
    """The names of pytorch-cifar and of SupContrast."""
    mine = state(3, stem=3)
    renamed = {key.replace("downsample", "shortcut"): value for key, value in mine.items()}
    file = saved(tmp_path, {"net": under("module.", renamed | {"linear.weight": torch.ones(10, 64)}), "acc": 95.0})
    expected = by_hand(mine, DATA(IMAGES), False, stem_padding=1)
    torch.testing.assert_close(Teacher.named(file, DATA).represent(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_what_training_scripts_save_beside_the_weights(tmp_path):
    """Arguments, paths and NumPy's numbers, as DINO and MoCo save them, are read; other objects are refused."""
    beside = {"args": argparse.Namespace(lr=0.1, out=Path("a")), "best": np.float64(91.2), "epoch": np.int64(3)}
    file = saved(tmp_path, {"teacher": under("backbone.", state()), "student": under("module.", state(1)), **beside})
    assert is_network(Teacher.named(file, DATA, "teacher"), state())
    with pytest.raises(
        InputError, match="asks for fractions.Fraction.*nothing in it was run; if you trust it, save its"
    ):
        Teacher.named(saved(tmp_path, {"model": state(), "lr": Fraction(1, 3)}), DATA)


@pytest.mark.parametrize("padding", [1, 2])
def test_the_stem_of_small_images(tmp_path, padding):
    """3x3, stride 1, no max-pool. Weights do not tell the padding: it is printed and can be given."""
    mine = state(3, stem=3)
    file = saved(tmp_path, {"state_dict": under("backbone.", mine) | {"backbone.fc.weight": torch.ones(4, 64)}})
    teacher = Teacher.named(file, DATA, stem_padding=padding)
    expected = by_hand(mine, DATA(IMAGES), False, stem_padding=padding)
    torch.testing.assert_close(teacher.represent(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert teacher.preprocessing == DATA and f"stem 3x3 without max-pool, padding {padding}" in teacher.summary
    assert torch.equal(Teacher.named(file, DATA).represent(IMAGES), teacher.represent(IMAGES)) == (padding == 2)


def test_three_stages(tmp_path):
    mine = weights((1, 1, 1), False, stem=3)
    found = under("model.", mine) | {"model.linear.weight": torch.ones(10, 32)}
    teacher = Teacher.named(saved(tmp_path, found), DATA, stem_padding=1)
    expected = by_hand(mine, DATA(IMAGES), False, stem_padding=1)
    torch.testing.assert_close(teacher.represent(IMAGES), expected, rtol=1e-4, atol=1e-5)
    for missing in ("layer2.0.bn1.weight", "bn1.weight", "layer1.0.conv1.weight"):
        torn = {key: value for key, value in found.items() if key != f"model.{missing}"}
        with pytest.raises(InputError, match="teacher: x.pth: state dict"):
            Teacher.named(saved(tmp_path, torn), DATA)


def test_a_stem_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="x.pth.*expected a stem of 7x7 or 3x3"):
        Teacher.named(saved(tmp_path, state(stem=5)), DATA)


def test_weights_for_a_network_of_the_users_from_a_checkpoint_of_several(tmp_path, monkeypatch, few):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    online, target = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2))

    def named(found, prefix=None):
        return Teacher.named(f"own_net:net@{saved(tmp_path, found)}", few.preprocessing, prefix)

    def same(teacher, network):
        with torch.no_grad():
            return torch.equal(teacher.represent(few.x_test), network(few.preprocessing(few.x_test)))

    both = under("target.", target.state_dict()) | under("online.", online.state_dict())
    assert same(named({"model": both}), online) and "moving average model.target." in named({"model": both}).summary
    assert same(named({"model": both}, "target"), target)
    assert same(named({"net": under("module.", online.state_dict())}), online)
    assert same(named({"model": online.state_dict(), "head": nn.Linear(3, 2).state_dict()}), online)
    for found in (
        under("a.", online.state_dict()) | under("b.", target.state_dict()),
        {"student": online.state_dict(), "teacher": target.state_dict()},
    ):
        with pytest.raises(InputError, match="2 different networks"):
            named(found)
    with pytest.raises(InputError, match="(?s)x.pth does not fit own_net:net:.*1.weight"):
        named({"model": under("module.", nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).state_dict())})


def test_a_prefix_without_a_file_of_several_networks(tmp_path, few, teacher):
    teacher.save(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match="teacher prefix: t.safetensors holds one network"):
        Teacher.named(str(tmp_path / "t.safetensors"), few.preprocessing, "encoder_q")
    with pytest.raises(InputError, match="teacher prefix: expected it with a file of weights"):
        Teacher.named("torch.nn:Identity", few.preprocessing, "encoder_q")


def test_a_file_that_holds_itself(tmp_path):
    found = {"state_dict": under("module.", state())}
    found["again"] = found
    assert is_network(Teacher.named(saved(tmp_path, found), DATA), state())


@pytest.mark.parametrize(
    "online, target, expected",
    [
        ("encoder_q.", "encoder_k.", True),
        ("encoder_k.", "encoder_q.", False),
        ("Encoder-Q.", "encoder_k.", True),
        ("a.online.x.", "a.target.x.", True),
        ("a.online.x.", "b.target.x.", False),
        ("", "momentum.", False),
        ("student.", "teacher.", False),
        ("online_a.", "target_b.", False),
        ("visual_encoder.", "visual_encoder_m.", True),
    ],
)
def test_names_of_moving_averages(online, target, expected):
    assert is_average_of(target, online) == expected
