"""Ambiguous names of sources and teachers: a folder called digits, colons, the user's modules."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd.cli.resume import make_absolute
from ssdd.config import InputError
from ssdd.data import load_images, load_target
from ssdd.teachers import Teacher

FAST = [
    "--quiet",
    "-m",
    "4",
    "--steps",
    "2",
    *(
        f"--{change}"
        for change in (
            "teacher.epochs=1",
            "teacher.widths=4-8",
            "student.model=convnet-4-8",
            "distill.pool=1",
            "distill.pool_steps=2",
        )
    ),
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_digits(place):
    g = np.random.default_rng(0)
    (place / "digits").mkdir()
    for i in range(5):
        Image.fromarray(g.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(place / "digits" / f"{i}.png")


def test_a_folder_called_digits(own_digits, few):
    for folder in (Path("digits"), "./digits", Path.cwd() / "digits"):
        assert load_images(folder).x_train.shape == (4, 6, 6, 3)
    assert load_images("digits").x_train.shape == (1297, 8, 8, 1)
    assert load_target(Path("digits"), 4).size == (4, 4) and load_target("digits", 4).size == (8, 8)
    assert load_images(Path("digits"), size=4).size == (4, 4) and make_absolute("digits") == "digits"
    with pytest.raises(InputError, match="expected 'digits', a folder"):
        load_images(Path("hf:somebody/something"))


def test_a_run_on_the_embedded_digits_goes_on_beside_such_a_folder(ssdd_command, own_digits):
    ssdd_command("distill", "-o", "run", *FAST)
    assert json.loads(Path("run/run.json").read_text())["arguments"]["data"] == "digits"


def test_a_study_on_the_embedded_digits(ssdd_command, teacher, own_digits):
    teacher.save("t.safetensors")
    Path("study.toml").write_text(
        'preset = "digits"\nseeds = 1\n[[row]]\nname = "none"\nfrom = "nothing"\n'
        '[row.set]\n"evaluate.labels" = [5]\n"evaluate.draws" = 1\n'
    )
    ended = ssdd_command("study", "study.toml", "-d", "digits", "-t", "t.safetensors", "--target", "more=digits")
    assert "[2/2]" in ended.stdout


def test_colons_in_paths(place, teacher):
    folder = place / "2026-11-26T10:30"
    file = teacher.save(folder / "t.safetensors")
    relative = f"{folder.name}/t.safetensors"
    pre = teacher.preprocessing
    assert Teacher.named(str(file), pre).key() == Teacher.named(relative, pre).key() == teacher.key()
    for name in ("10:30/t.safetensors", "/a:b/t.pth", "x.y:z.pt"):
        with pytest.raises(InputError, match="no such file"):
            Teacher.named(name, pre)
    hub = pytest.importorskip("datasets", reason="THE OPTIONAL LIBRARY `datasets` IS NOT HERE: no hf:... set was read")
    images = [Image.new("L", (4, 4), i) for i in range(5)]
    hub.Dataset.from_dict({"image": images}, hub.Features({"image": hub.Image()})).save_to_disk(str(folder / "se:t"))
    data = load_images(f"hf:{folder / 'se:t'}")
    assert data.name == "se:t" and len(data.x_train) == 4


OWN = "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))\n"


def test_a_module_in_the_current_folder(place, fresh):
    (place / "own_net.py").write_text(OWN)
    (place / "later.py").write_text("import own_net\n")
    # The console script's path does not have the current folder.
    code = (
        "import os, sys\n"
        "sys.path[:] = [p for p in sys.path if p not in ('', os.getcwd())]\n"
        "import ssdd\n"
        "from ssdd.teachers import Teacher\n"
        "Teacher.named('own_net:make', ssdd.load_images().preprocessing)\n"
        "import later\n"
        "print(sys.path.index(os.getcwd()) == len(sys.path) - 1, sys.path.count(os.getcwd()))\n"
    )
    ended = fresh(code, folder=place)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["True", "1"]


def test_a_teacher_is_saved_under_a_name_that_can_be_read(ssdd_command, place, teacher):
    for name in ("t.pt", "t.pth", "t", "t.npz"):
        ended = ssdd_command("teacher", "-o", name, "--quiet", fails=True)
        assert isinstance(ended.exception, InputError)
        assert str(ended.exception).endswith("write t.safetensors")
        with pytest.raises(InputError, match=r"write t\.safetensors"):
            teacher.save(name)
    assert not list(place.iterdir())
    x = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    loaded = Teacher.named(str(teacher.save("T.SAFETENSORS")), teacher.preprocessing)
    assert torch.equal(loaded.represent(x), teacher.represent(x))
