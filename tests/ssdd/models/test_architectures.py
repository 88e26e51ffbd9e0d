"""The networks of the published comparison: sizes, image sizes, and the names that others know their weights by."""

import json
import re
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ssdd
from ssdd.artifact import read_safetensors
from ssdd.config import InputError, StudentConfig
from ssdd.models import build, named_resnet, seeded, student

# (name, parameters of the backbone by hand, features at 32 and 64 pixels)
PUBLISHED = [
    # convolutions with bias 9 i o + o, BatchNorm 2 o, over 3 > 64 > 128 > 256 > 256 > 512 > 512 > 512 > 512
    ("vgg11", 9_225_984, (512, 2048)),
    # 5x5 over 3 > 128 > 192, then 3x3 over 192 > 256 > 192 > 192, the same sum
    ("alexnet", 1_843_392, (192 * 16, 192 * 64)),
    # no bias; 1x1, 3x3 per channel and 1x1 of each block, with BatchNorm; 1x1 shortcuts with BatchNorm where stride 1
    # changes the channels; 864 + 64 before, 320 * 1280 + 2560 after
    ("mobilenetv2", 1_079_504, (1280, 1280)),
    ("resnet10", 4_898_112, (512, 512)),
    ("resnet18", 11_168_832, (512, 512)),
]


@pytest.mark.parametrize(("name", "parameters", "features"), PUBLISHED)
def test_published_sizes(name, parameters, features):
    for side, dimension in zip((32, 64), features, strict=True):
        network = build(name, 3, (side, side), 7)
        assert sum(p.numel() for p in network.backbone.parameters()) == parameters
        assert network.dimension == dimension == network.head.in_features
    narrow = student(StudentConfig(model=name, width=0.25), 3, (32, 32), 7)
    x = torch.rand(2, 3, 32, 32)
    assert narrow.features(x).shape == (2, features[0] // 4) and narrow(x).shape == (2, 7)
    assert sum(p.numel() for p in narrow.backbone.parameters()) < parameters / 13


def test_a_mobilenets_layers_are_the_published_ones():
    """Strides and widths, read from the convolutions themselves."""
    network = build("mobilenetv2", 3, (32, 32), 2).backbone
    depthwise = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    strides = [1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert [m.stride[0] for m in depthwise] == strides
    inside = [32, 16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3]
    assert [m.groups for m in depthwise] == [32, *(2 * channels for channels in inside[1:])]


@pytest.mark.parametrize("name", ["resnet10", "resnet18"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_blocks_of_a_resnet_start_as_their_shortcut(name, stem):
    network = build(name, 3, (16, 16), 2, stem=stem).backbone
    blocks = list(chain(*(getattr(network, f"layer{i}") for i in range(1, 5))))
    assert len(blocks) == {"resnet10": 4, "resnet18": 8}[name]
    assert all(not block.bn2.weight.any() and block.bn1.weight.eq(1).all() for block in blocks)
    assert [block.downsample is not None for block in blocks].count(True) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg11", {}, "vgg11 halves the image side 5 times, so it needs images of at least 32x32, got 8x8"),
        ("vgg11", {"stem": "imagenet"}, "stem: only resnet10 and resnet18"),
        ("resnet18", {"stem": "small"}, "stem: expected 'cifar' or 'imagenet'"),
        ("resnet18", {"width": 0.0}, "width: expected a number above 0"),
        ("os:getcwd", {"width": 0.5}, "width: only networks of this package"),
        ("os:getcwd", {}, "os:getcwd cannot be made"),
        ("os:no_such", {}, "called as factory"),
        ("no_such_module:f", {}, "no_such_module"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, 3, (8, 8), 2, **options)


def test_a_network_that_the_images_do_not_fit_is_refused_before_any_training(ssdd_command, tmp_path, few):
    pairs = ssdd.DistilledSet(torch.rand(4, 1, 8, 8), torch.randn(4, 16), few.preprocessing, source="digits")
    pairs.save(tmp_path / "pairs.safetensors")
    (tmp_path / "study.toml").write_text(
        'preset = "digits"\ndata = "digits.npz"\nteacher = "missing.safetensors"\n'
        '[[row]]\nname = "a"\nfrom = "krr-st"\n[row.set]\n"student.model" = "vgg11"\n'
    )
    np.savez(tmp_path / "digits.npz", x_train=few.x_train, x_test=few.x_test)
    for command in (
        ["pretrain", tmp_path / "pairs.safetensors", "--model", "vgg11", "-o", tmp_path / "w.safetensors"],
        ["evaluate", tmp_path / "pairs.safetensors", "--model", "vgg11"],
        ["distill", "--student.model", "vgg11", "-o", tmp_path / "run"],
        ["study", tmp_path / "study.toml"],  # before the teacher is read
    ):
        assert "at least 32x32, got 8x8" in str(ssdd_command(*command, fails=True).exception)
    assert not (tmp_path / "run").exists() and not (tmp_path / "w.safetensors").exists()


def test_a_function_of_the_users_makes_the_network(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def tiny(channels, size):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5), nn.Flatten())\n"
        "def maps(channels, size):\n    return nn.Conv2d(channels, 5, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    network = seeded(lambda: build("my_networks:tiny", 1, (8, 6), 3), 0)
    assert network.dimension == 5 * 6 * 4 and network.training and network.backbone.training
    assert not network.backbone[1].running_mean.any()  # measuring the features has left no trace
    assert network(torch.rand(2, 1, 8, 6)).shape == (2, 3)
    with pytest.raises(InputError, match=r"one vector per image.*got \[1, 5, 6, 4\]"):
        build("my_networks:maps", 1, (8, 6), 3)
    with pytest.raises(InputError, match="cannot run on images of 2x2 with 1 channels"):
        build("my_networks:tiny", 1, (2, 2), 3)


# --- the names of torchvision -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision_names():
    """Names and shapes of torchvision 0.28's resnet18, in its order."""
    return json.loads(Path(__file__).with_name("torchvision_resnet18.json").read_text())


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_pretrained_resnet18_is_written_under_torchvisions_names(ssdd_command, tmp_path, torchvision_names, stem):
    pairs = ssdd.DistilledSet(torch.rand(4, 3, 16, 16), torch.randn(4, 5), ssdd.Preprocessing((0.5,) * 3, (0.2,) * 3))
    pairs.save(tmp_path / "pairs.safetensors")
    file = tmp_path / "w.safetensors"
    options = ["--model", "resnet18", "--stem", stem, "--steps", 1, "-q", "-o", file]
    ssdd_command("pretrain", tmp_path / "pairs.safetensors", *options)
    weights, about = read_safetensors(file)
    expected = {key: shape for key, shape in torchvision_names.items() if not key.startswith("fc.")}
    if stem == "cifar":
        expected["conv1.weight"] = [64, 3, 3, 3]
    assert {key: list(value.shape) for key, value in weights.items()} == expected
    assert (about["model"], about["stem"], about["width"]) == ("resnet18", stem, 1.0)
    assert list(build("resnet18", 3, (16, 16), 2).backbone.state_dict()) == list(expected)


@pytest.fixture(scope="module")
def outside_libraries():
    """torchvision and timm.

    Beside a torch without CUDA, the compiled operators of PyPI's torchvision cannot be loaded. No classification
    network calls them, so they are declared, without code, for torchvision to be imported.
    """
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for library in ("torchvision", "timm"):
        missing = ""
        while missing is not None:
            try:
                pytest.importorskip(library, reason=f"{library} is not installed: its networks were NOT tried")
                missing = None
            except RuntimeError as error:
                found = re.search(r"operator torchvision::(\w+) does not exist", str(error))
                assert found and found[1] != missing, error
                missing = found[1]
                operators.define(f"{missing}(Tensor boxes) -> Tensor")
    yield
    del operators


@pytest.mark.usefixtures("outside_libraries")
def test_the_lines_of_the_documentation_load_both_stems(root, tmp_path, monkeypatch):
    text = (root / "docs" / "artifact.md").read_text()
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "torchvision.models" in b]
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    for block, stem in zip(blocks, ("imagenet", "cifar"), strict=True):
        network = build("resnet18", 3, (64, 64), 2, stem=stem).eval()
        save_file(network.backbone.state_dict(), f"{stem}.safetensors")
        names = {}
        exec(block, names)
        names["network"].fc = torch.nn.Identity()
        x = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(names["network"].eval()(x), network.features(x))


@pytest.mark.usefixtures("outside_libraries")
def test_timm_has_the_same_names():
    import timm

    network = build("resnet18", 3, (64, 64), 2, stem="imagenet").eval()
    theirs = timm.create_model("resnet18").eval()
    keys = theirs.load_state_dict(network.backbone.state_dict(), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and not keys.unexpected_keys
    theirs.reset_classifier(0)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(theirs(x), network.features(x))


@pytest.mark.usefixtures("outside_libraries")
def test_networks_of_timm_and_torchvision():
    for library in ("timm", "torchvision"):
        network = build(f"{library}:resnet18", 3, (32, 32), 4)
        assert network.dimension == 512 and network(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(InputError, match="timm:NAME takes any number"):
        build("torchvision:resnet18", 1, (32, 32), 4)


def test_a_library_for_another_torch(tmp_path, monkeypatch):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="timm is installed, but not for torch 2.*install the version of timm"):
        build("timm:resnet18", 3, (32, 32), 4)


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="needs timm, which is not installed: pip install timm"):
        build("timm:resnet18", 3, (32, 32), 4)


@pytest.mark.parametrize("name", ["resnet10", "resnet18"])
def test_weights_under_the_names_of_version_01_are_read(name):
    """stem, stages in one row, norm and shortcut."""
    network = named_resnet(name, 3, width=0.1)
    per_stage = {"resnet10": 1, "resnet18": 2}[name]

    def old(key):
        found = re.fullmatch(r"layer(\d)\.(\d)\.(.*)", key)
        if not found:
            return key.replace("conv1.", "stem.0.").replace("bn1.", "stem.1.")
        inner = found[3].replace("bn", "norm").replace("downsample", "shortcut")
        return f"stages.{(int(found[1]) - 1) * per_stage + int(found[2])}.{inner}"

    stored = {f"0.{old(key)}": value for key, value in network.state_dict().items()}
    assert "0.stages.1.norm2.running_var" in stored
    other = torch.nn.Sequential(named_resnet(name, 3, width=0.1))
    other.load_state_dict(stored)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
