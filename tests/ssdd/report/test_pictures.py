"""Pictures are drawn with any plotting backend in the environment, in little memory, and their errors never end a
run."""

import errno
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import ssdd
from ssdd.report import Display, contact_sheet, coverage, draw_each, pictures
from ssdd.report.pictures import POINTS, SAMPLE, plane, sample

FAST = [
    "--quiet",
    "--steps",
    "2",
    "--images",
    "4",
    *(
        f"--{change}"
        for change in (
            "teacher.epochs=1",
            "teacher.widths=4-8",
            "student.model=convnet-4-8",
            "distill.pool=1",
            "distill.pool_steps=2",
            "pretrain.steps=2",
            "evaluate.labels=5",
            "evaluate.draws=1",
        )
    ),
]
PICTURES = ["contact-sheet.png", "coverage.png", "images-over-steps.png", "loss.png"]


@pytest.fixture
def child(fresh):
    """child(code, **environment): run it in a process of its own, where matplotlib is not imported yet."""

    def run(code, **environment):
        code = f"import sys, torch\nassert 'matplotlib' not in sys.modules\ntorch.set_num_threads(1)\n{code}"
        without = dict.fromkeys(("HOME", "MPLCONFIGDIR", "MPLBACKEND"))
        return fresh(code, timeout=600, **without | environment)

    return run


def test_a_notebooks_backend_changes_nothing(child, tmp_path):
    code = (
        "import os, sys, torch\n"
        "from ssdd.report import coverage, images_over_steps, loss_curves\n"
        "r = torch.randn(30, 5)\n"
        "coverage(r, r[:3], sys.path[-1] + '/a.png')\n"
        "loss_curves({0: [(1, 1.0)]}, sys.path[-1] + '/b.png')\n"
        "images_over_steps({0: torch.rand(4, 1, 8, 8)}, sys.path[-1] + '/c.png')\n"
        "print(os.environ['MPLBACKEND'], os.environ.get('MPLCONFIGDIR'))\n"
    )
    backend = "module://no_such_package.backend_inline"
    ended = child(f"import sys; sys.path.append({str(tmp_path)!r})\n{code}", MPLBACKEND=backend, HOME=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [backend, "None"]
    assert {"a.png", "b.png", "c.png"} <= {file.name for file in tmp_path.iterdir()}


def test_pictures_need_no_home_folder(child, tmp_path):
    code = (
        "import pathlib, torch\n"
        "@classmethod\n"
        "def no(cls): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = no\n"
        "from ssdd.report import coverage\n"
        f"coverage(torch.randn(30, 5), torch.randn(3, 5), {str(tmp_path / 'a.png')!r})\n"
    )
    ended = child(code)
    assert ended.returncode == 0, ended.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "verb, kept",
    [
        ("distill", {"distilled.safetensors", "run.json"}),
        ("demo", {"results.md", "results.json", "seed-0.safetensors"}),
    ],
)
def test_pictures_that_fail_lose_no_result(ssdd_command, tmp_path, monkeypatch, verb, kept):
    def broken(*size):
        raise ValueError("no fonts here\nand more")

    monkeypatch.setattr(pictures, "_figure", broken)
    more = ["--seeds", "1", "--workers", "1"] if verb == "demo" else []
    ended = ssdd_command(verb, "-o", tmp_path / "run", *FAST, *more)
    there = {file.name for file in (tmp_path / "run").iterdir()}
    assert kept <= there and "contact-sheet.png" in there and not there & {*PICTURES[1:], "work", "checkpoints"}
    for name in PICTURES[1:]:
        assert ended.output.count(f"{name}: this picture was not drawn (ValueError: no fonts here)") == 1
    if verb == "distill":
        assert "finished" in ssdd_command("distill", "--resume", tmp_path / "run").stdout


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file, printed = tmp_path / "sheet.png", []

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    contact_sheet(torch.zeros(2, 1, 8, 8), file)
    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    assert draw_each({file: partial(contact_sheet, torch.ones(2, 1, 8, 8))}, printed.append) == []
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["sheet.png"]
    assert [event["event"] for event in printed] == ["warning"] and "sheet.png" in printed[0]["message"]
    assert os.strerror(errno.ENOSPC) in printed[0]["message"]
    with Display(show=False) as display:  # a report like the program's
        draw_each({file: partial(contact_sheet, torch.ones(0, 1, 8, 8))}, display)
    with pytest.raises(KeyboardInterrupt):
        draw_each({file: lambda path: (_ for _ in ()).throw(KeyboardInterrupt)}, printed.append)


def test_a_page_whose_picture_fails_is_written(tmp_path, monkeypatch):
    from ssdd.report import page

    plan = ssdd.read_plan(ssdd.studies.demo.FILE, seeds=1)
    monkeypatch.setattr(page, "realism_points", lambda plan, cells: [("a", 1.0, 2.0), ("b", 2.0, 1.0)])
    printed = []
    assert "(realism.png)" in page.write_page(plan, tmp_path, printed.append).read_text() and not printed
    monkeypatch.setattr(pictures, "_figure", lambda *size: 1 / 0)
    assert "(realism.png)" not in page.write_page(plan, tmp_path, printed.append).read_text()
    assert [event["event"] for event in printed] == ["warning"] and "realism.png" in printed[0]["message"]


@pytest.mark.parametrize("n, d", [(200, 6), (40, 90), (50, 2), (3, 4)])
def test_the_plane_is_that_of_a_full_decomposition(n, d):
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * torch.arange(1, d + 1)
    mean, axes, share = plane(points)
    _, spread, expected = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    torch.testing.assert_close(mean, points.mean(0))
    torch.testing.assert_close((axes.T @ expected[:2].T).abs(), torch.eye(2, dtype=torch.float64), atol=1e-8, rtol=0)
    assert share == pytest.approx(float(spread[:2].square().sum() / spread.square().sum()))


@pytest.mark.parametrize(
    "points, targets",
    [
        (torch.randn(50, 1), torch.randn(5, 1)),
        (torch.ones(50, 3), torch.ones(2, 3)),
        (torch.zeros(4, 1), torch.zeros(1, 1)),
        (torch.randn(2, 7), torch.randn(1, 7)),
        (torch.randn(1, 4), torch.ones(1, 4)),
    ],
)
def test_representations_that_span_no_plane(tmp_path, points, targets):
    coverage(points, targets, tmp_path / "c.png", torch.zeros(len(points), dtype=torch.int64))
    with Image.open(tmp_path / "c.png") as picture:
        assert len(picture.convert("L").getcolors()) > 5


def test_a_sample_is_the_same_again_and_bounded():
    assert torch.equal(sample(30, 5), torch.arange(30))
    for n, d in ((1_000_000, 8), (1_000_000, 2048), (60_000, 100_000)):
        rows = sample(n, d)
        assert torch.equal(rows, sample(n, d)) and len(rows.unique()) == len(rows) <= POINTS
        assert len(rows) >= 2 and len(rows) * d * 8 <= SAMPLE and int(rows.max()) < n


def test_a_coverage_picture_takes_little_memory(tmp_path):
    some = np.random.default_rng(0).standard_normal((10_000, 512), dtype=np.float32)
    np.save(tmp_path / "r.npy", np.tile(some, (15, 1)))
    code = (
        "import resource, sys, numpy, torch\n"
        "from ssdd.report import coverage\n"
        f"folder = {str(tmp_path)!r}\n"
        "coverage(torch.randn(50, 4), torch.randn(5, 4), folder + '/c.png')\n"
        "for wide in (1, 4):\n"
        "    r = torch.from_numpy(numpy.load(folder + '/r.npy', mmap_mode='c')).view(-1, 512 * wide)\n"
        "    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "    before = peak()\n"
        "    coverage(r, r[:50], folder + '/c.png', torch.arange(len(r)) % 10)\n"
        "    print(peak() - before)\n"
    )
    # A forked process has not touched all pages of torch yet, and they would count.
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert all(float(line) < 200 for line in ended.stdout.split()), ended.stdout
