"""Run every code block of every page, unless the page says why it cannot run.

``python`` blocks of a page share one namespace. ``bash`` blocks may have ``ssdd ...`` and ``python -m ...`` commands. A
block with a ``title`` is written to that file. Everything happens in a temporary folder, with small presets.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssdd
import ssdd.cli
from ssdd.config import FINETUNE, PRESETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
)

SMALL = {
    "student.model": "convnet-4-8",
    "teacher.backbone": "convnet",
    "teacher.widths": "4-8",
    "teacher.epochs": "1",
    "teacher.projector": "8",
    "distill.images": "8",
    "distill.steps": "3",
    "distill.batch": "16",
    "distill.pool": "2",
    "distill.pool_steps": "3",
    "pretrain.steps": "3",
    "evaluate.labels": "2-0",
    "evaluate.draws": "1",
    "finetune.steps": "2",
    "classifier.model": "convnet-4-8",
    "classifier.epochs": "1",
    "kd.epochs": "2",
}
# Options added to commands whose defaults do not come from a preset.
ADDED = {"pretrain": ["--steps", "1", "--batch", "8"]}
# The files that a page needs in its folder before its first block.
GIVEN = {
    "README.md": ["photos"],
    "docs/distillation.md": ["photos"],
    "docs/data.md": ["photos"],
    "docs/teachers.md": ["photos", "resnet.pth"],
    "docs/artifact.md": ["distilled.safetensors", "scores.npy", "x_syn.pt", "y_syn.pt", "cifar-100-python"],
    "docs/transfer.md": ["distilled.safetensors", "cifar10.npz", "flowers.npz", "pets"],
    "docs/studies.md": ["cifar10.npz", "flowers.npz", "teacher.safetensors", "images.pt", "labels.pt"],
}


@dataclass(frozen=True)
class Block:
    """One code block of a page. ``reason``: why it does not run, or None."""

    line: int
    language: str
    title: str | None
    text: str
    reason: str | None


def blocks(text: str) -> list[Block]:
    """Return the code blocks of a page, hidden ones (``<!-- run first``) included, in order."""
    found: list[Block] = []
    pattern = r"^<!-- run first\n(?P<hidden>.*?)^-->$|^```(?P<head>[^\n`]*)\n(?P<body>.*?)^```$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        line = text[: match.start()].count("\n") + 1
        if match["head"] is None:
            found.append(Block(line, "python", None, match["hidden"], None))
            continue
        language = match["head"].split()[0] if match["head"].strip() else ""
        title = re.search(r'title="([^"]+)"', match["head"])
        before = text[: match.start()].rstrip("\n").rsplit("\n", 1)[-1]
        reason = re.fullmatch(r"<!-- not run: (.+) -->", before)
        found.append(Block(line, language, title and title[1], match["body"], reason and reason[1]))
    return found


def indented(text: str) -> list[str]:
    """Return the first line of each indented code block; such blocks have no language."""
    outside = re.sub(r"^```.*?^```$|^<!--.*?-->$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\n\n {4}(?![-*\d|])(\S[^\n]*)", outside)


def commands(text: str) -> list[list[str]]:
    """Return the commands of a ``bash`` block, each as a list of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str]) -> None:
    """Run one command in this process if it is ``ssdd``, in a new one if it is ``python -m``."""
    if words[0] == "ssdd":
        sys.argv = [*words, *ADDED.get(words[1], [])]
        try:
            ssdd.cli.main()
        except SystemExit as end:
            assert not end.code, f"{shlex.join(words)}: exit status {end.code}"
    elif words[:2] == ["python", "-m"]:
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    else:
        raise AssertionError(f"{shlex.join(words)}: no test runs this; say why above it: <!-- not run: ... -->")


def run_page(name: str, text: str) -> int:
    """Run all blocks of a page in the current folder; return how many ran."""
    names: dict[str, object] = {"__name__": name}
    count = 0
    for block in blocks(text):
        where = f"{name}:{block.line}"
        if block.reason or (block.language == "text" and not block.title):
            continue
        if block.title:
            Path(block.title).write_text(block.text)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, where, "exec", dont_inherit=True), names)
        elif block.language == "bash":
            for words in commands(block.text):
                run_command(words)
        else:
            raise AssertionError(f"{where}: a block of {block.language!r}; expected python, bash, text or a title")
        count += 1
    return count


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread: small images are no faster on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_presets():
    """Every preset with the small settings; as text they are parsed once, not once per page."""
    return {name: ssdd.with_settings(settings, SMALL) for name, settings in PRESETS.items()}


# --- the shelf ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with every file that a page may need."""
    folder = tmp_path_factory.mktemp("shelf")
    random = np.random.default_rng(0)

    def pictures(count):
        return random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)

    for label in ("cat", "dog", "owl"):
        (folder / "photos" / label).mkdir(parents=True)
        for i, pixels in enumerate(pictures(45)):
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i:03}.png")
    for part, label in (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")):
        (folder / "pets" / part / label).mkdir(parents=True)
        for i, pixels in enumerate(pictures(10)):
            Image.fromarray(pixels[: 32 - i]).save(folder / "pets" / part / label / f"{i}.png")
    for name in ("cifar10", "flowers"):
        labels = {"y_train": np.arange(40) % 4, "y_test": np.arange(20) % 4}
        np.savez(folder / f"{name}.npz", x_train=pictures(40), x_test=pictures(20), **labels)
    data = ssdd.load_images(folder / "cifar10.npz")
    small = ssdd.with_settings(ssdd.preset("small"), SMALL)
    ssdd.train_teacher(data, small.teacher).save(folder / "teacher.safetensors")
    recipe = dataclasses.asdict(ssdd.PretrainConfig(steps=5))
    pairs = ssdd.DistilledSet(torch.rand(12, 3, 32, 32), torch.randn(12, 5), data.preprocessing, recipe=recipe)
    pairs.save(folder / "distilled.safetensors")
    np.save(folder / "scores.npy", np.eye(3, dtype=np.float32).repeat(4, 0))
    torch.save(torch.rand(6, 3, 32, 32), folder / "x_syn.pt")
    torch.save(torch.randn(6, 5), folder / "y_syn.pt")
    torch.save(torch.rand(6, 3, 32, 32), folder / "images.pt")
    torch.save(torch.arange(6) % 2, folder / "labels.pt")
    cifar100 = folder / "cifar-100-python"
    cifar100.mkdir()
    for part, count in (("train", 20), ("test", 10)):
        rows = pictures(count).transpose(0, 3, 1, 2).reshape(count, 3072)
        content = {b"data": np.ascontiguousarray(rows), b"fine_labels": [i % 5 for i in range(count)]}
        (cifar100 / part).write_bytes(pickle.dumps(content))
    torch.save(resnet18_of_torchvision(), folder / "resnet.pth")
    return folder


def resnet18_of_torchvision() -> dict[str, torch.Tensor]:
    """Return random weights under torchvision's names of a ResNet-18, with torchvision's shapes."""
    weights: dict[str, torch.Tensor] = {}

    def normalise(name, channels):
        weights.update(
            {
                f"{name}.weight": torch.ones(channels),
                f"{name}.bias": torch.zeros(channels),
                f"{name}.running_mean": torch.zeros(channels),
                f"{name}.running_var": torch.ones(channels),
                f"{name}.num_batches_tracked": torch.tensor(0),
            }
        )

    def convolve(name, rows, columns, side):
        weights[f"{name}.weight"] = torch.randn(rows, columns, side, side) * (2 / (columns * side * side)) ** 0.5

    convolve("conv1", 64, 3, 7)
    normalise("bn1", 64)
    width = 64
    for stage, wider in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            convolve(f"{name}.conv1", wider, width, 3)
            normalise(f"{name}.bn1", wider)
            convolve(f"{name}.conv2", wider, wider, 3)
            normalise(f"{name}.bn2", wider)
            if width != wider:
                convolve(f"{name}.downsample.0", wider, width, 1)
                normalise(f"{name}.downsample.1", wider)
            width = wider
    weights["fc.weight"], weights["fc.bias"] = torch.zeros(10, 512), torch.zeros(10)
    return weights


# --- the pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(page, shelf, small_presets, tmp_path, monkeypatch):
    text = (ROOT / page).read_text()
    assert indented(text) == [], "a code block needs a fence, which names its language"
    for name in GIVEN.get(page, []):
        copy = shutil.copytree if (shelf / name).is_dir() else shutil.copy
        copy(shelf / name, tmp_path / name)
    for name, settings in small_presets.items():
        monkeypatch.setitem(PRESETS, name, settings)
    for name, recipe in FINETUNE.items():
        monkeypatch.setitem(FINETUNE, name, dataclasses.replace(recipe, steps=2, small_set_steps=0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    ran = run_page(page, text)
    assert ran + sum(b.reason is not None or b.language == "text" for b in blocks(text)) == len(blocks(text))


def test_the_pages_that_need_files_exist():
    assert set(GIVEN) <= set(PAGES)


# --- the mechanism must be able to fail -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nassert False\n```", AssertionError),
        ("```python\nx = 1\n```\n```python\nx / 0\n```", ZeroDivisionError),
        ("```bash\nssdd settings no-such-preset\n```", AssertionError),
        ("```bash\npython -m no_such_module\n```", AssertionError),
        ("```bash\nmake demo\n```", AssertionError),
        ("```\nx\n```", AssertionError),
        ("```toml\nx = 1\n```", AssertionError),
        ("<!-- run first\nx = 0\n-->\n```python\n1 / x\n```", ZeroDivisionError),
        ('```python title="saved.py"\nx = 1\n```\n```python\nassert not open("saved.py").read()\n```', AssertionError),
    ],
)
def test_a_block_that_fails_is_noticed(text, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(error):
        run_page("page.md", text)


def test_a_block_with_a_reason_does_not_run():
    assert run_page("page.md", "<!-- not run: it needs a GPU -->\n```bash\nmake gpu\n```") == 0
    assert indented("words\n\n    ssdd demo\n") == ["ssdd demo"]
    assert commands("ssdd a \\\n    -b  # c\n\n# d\nssdd e") == [["ssdd", "a", "-b"], ["ssdd", "e"]]
