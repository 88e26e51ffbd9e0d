"""The report: what a parser of HTML finds in the page of real runs, and what it refuses."""

import json
import re
import shutil
from html.parser import HTMLParser
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch

import ssdd
from ssdd.artifact import DistilledSet
from ssdd.report.charts import linear, logarithmic
from ssdd.report.curves import Curve, band
from ssdd.report.markup import Html, join, tag
from ssdd.report.material import make_material, material_file, read_material, write_material
from ssdd.report.record import read_record, read_records
from ssdd.report.sprites import make_sprite

FAST = ["-q", "-m=6", "--teacher.epochs=1", "--teacher.widths=4-8", "--distill.pool_steps=4"]
FAST += ["--student.model=convnet-4-8", "--distill.log_every=2", "--pretrain.steps=8", "--evaluate.draws=1"]
HOSTILE = '<script>alert("1")</script>&\'<img src=http://evil.example/x>'


class Page(HTMLParser):
    """The elements of a page, with their attributes and the text of each section."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text, self.section = [], [], {}, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name == "section":
            self.section = dict(attributes)["id"]
        if name not in ("meta", "input", "img"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text[self.section] = self.text.get(self.section, "") + data

    def all(self, name, **expected):
        return [a for n, a in self.elements if n == name and all(a.get(k) == v for k, v in expected.items())]

    def tiles(self):
        return [a for n, a in self.elements if n == "button" and "tile" in a.get("class", "").split()]


def read(file):
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    for _, attributes in page.elements:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:"))
    assert all(url.startswith("data:image/") for url in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    return page


@pytest.fixture(scope="module")
def runs(ssdd_command, teacher, tmp_path_factory):
    """Two runs that differ in their seed alone."""
    folder = tmp_path_factory.mktemp("runs")
    teacher.save(folder / "teacher.safetensors")
    given = ["-t", folder / "teacher.safetensors"]
    ssdd_command("distill", "-o", folder / "first", "--steps", 8, *given, *FAST)
    output = ssdd_command("distill", "-o", folder / "second", "--steps", 8, "--seed", 1, *given, *FAST).stdout
    assert f"Report: {folder / 'second' / 'report.html'}" in output
    return folder


def test_the_report_of_a_run(runs):
    page = read(runs / "first" / "report.html")
    sections = ["images", "steps", "curves", "coverage", "pool", "settings", "provenance"]
    assert [a["id"] for a in page.all("section")] == sections
    assert [a["href"] for a in page.all("a")][1:] == [f"#{name}" for name in sections]
    tiles = page.tiles()
    assert len(tiles) == 6 and all(len(a["data-near"].split()) == 3 for a in tiles)
    assert all(a["aria-label"].startswith("Distilled image") and "class" in a["aria-label"] for a in tiles)
    assert [a["tabindex"] for a in tiles] == ["0", *["-1"] * 5]  # one stop of Tab; arrows do the rest
    assert "ssdd distill -o first --steps 8 -t teacher.safetensors -q" in page.text["provenance"]
    assert version("torch") in page.text["provenance"]
    settings = {setting.key.rpartition(".")[2] for setting in ssdd.config.settings_reference()}
    assert all(name in page.text["settings"] for name in settings)
    # Loss, step time, age, untrained share, and the coverage by each method that is installed.
    assert len(page.all("svg", role="img")) == 5 + (find_spec("umap") is not None)


def test_the_nearest_real_images_are_the_nearest(few, representations):
    rows = torch.tensor([3, 50, 7])
    pairs = DistilledSet(torch.rand(3, 1, 8, 8), representations.train[rows].clone(), few.preprocessing)
    found = make_material(pairs, representations.train, few.x_train, few.y_train, {0: pairs.images})
    distances = torch.cdist(pairs.targets.double(), representations.train.double())
    assert torch.equal(found.rows[found.nearest], distances.topk(3, largest=False).indices)
    spread = (representations.train - representations.train.mean(0)).double().square().sum(1).mean().sqrt()
    expected = distances.topk(3, largest=False).values / spread
    torch.testing.assert_close(found.distance.double(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(found.real, few.x_train[found.rows]) and torch.equal(found.labels, few.y_train[found.rows])
    assert found.points["pca"][0].shape == (400, 2) and found.points["pca"][1].shape == (3, 2)


def test_material_is_what_was_written(few, representations, tmp_path):
    pairs = DistilledSet(torch.rand(2, 1, 8, 8), representations.train[:2].clone(), few.preprocessing)
    found = make_material(pairs, representations.train, few.x_train, None, {0: pairs.images, 4: pairs.images})
    back = read_material(write_material(found, tmp_path / "m.safetensors"))
    assert torch.equal(back.nearest, found.nearest) and sorted(back.snapshots) == [0, 4]
    assert len(back.labels) == 0 and back.about == found.about
    assert read_material(tmp_path / "none.safetensors") is None
    (tmp_path / "m.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ssdd.InputError, match="m.safetensors"):
        read_material(tmp_path / "m.safetensors")


def test_several_runs_side_by_side(runs, ssdd_command, tmp_path):
    out = tmp_path / "both.html"
    ssdd_command("report", runs / "first", runs / "second", "-o", out)
    page = read(out)
    assert len(page.tiles()) == 12
    assert all(name in page.text["images"] for name in ("first", "second"))
    # They differ in their seed alone: one line with a band, not two.
    assert page.all("path", **{"class": "band k0"}) and not page.all("path", **{"class": "line k1"})
    again = ssdd_command("report", runs / "first", runs / "second", "-o", out, fails=True)
    assert "--overwrite" in str(again.exception)
    twice = [record.name for record in read_records([runs / "first", runs / "first"])]
    assert len(set(twice)) == 2


def test_a_run_that_kept_nothing_for_a_report(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "bare")
    material_file(tmp_path / "bare" / "distilled.safetensors").unlink()
    page = read(ssdd.write_report([tmp_path / "bare"]))
    assert [a["id"] for a in page.all("section")] == ["images", "curves", "pool", "settings", "provenance"]
    assert len(page.tiles()) == 6 and "no nearest real images" in page.text["images"]


def test_a_run_that_is_not_finished(runs, tmp_path):
    shutil.copytree(runs / "first", tmp_path / "stopped")
    (tmp_path / "stopped" / "distilled.safetensors").unlink()
    log = tmp_path / "stopped" / "log.jsonl"
    kept = [line for line in log.read_text().splitlines() if '"result"' not in line]
    log.write_text("\n".join(kept) + '\n{"event": "dis')  # killed while it wrote
    page = read(ssdd.write_report([tmp_path / "stopped"]))
    assert "not finished" in page.text[""] and "curves" in page.text and "images" not in page.text


def test_a_demonstration_has_tables_and_paired_differences(ssdd_command, tmp_path):
    out = tmp_path / "demo"
    fast = [*FAST, "--teacher.epochs=2", "--evaluate.labels=5-0"]
    output = ssdd_command("demo", "-o", out, "--seeds", 2, "--steps", 4, "--workers", 1, *fast)
    assert f"Report: {out / 'report.html'}" in output.stdout
    page = read(out / "report.html")
    assert "against k-means + teacher" in page.text["results"] and "Paired" in page.text["results"]
    assert len(page.tiles()) == 12 and "seed 1" in page.text["images"]
    assert page.all("path", **{"class": "band k0"})
    record = read_record(out)
    assert record.kind == "demo" and sorted(record.curves["KRR-ST"]) == [0, 1]


STUDY = """
title = "Two rows"
preset = "digits"
seeds = 1
data = "digits"
teacher = "t.safetensors"
[set]
"distill.images" = 5
"distill.steps" = 4
"distill.log_every" = 2
"distill.pool_steps" = 4
"student.model" = "convnet-4-8"
"pretrain.steps" = 8
"evaluate.labels" = "0"
[[row]]
name = "random + teacher"
from = "random"
[[row]]
name = "KRR-ST"
from = "krr-st"
"""


def test_a_study_ends_with_its_report(ssdd_command, teacher, tmp_path):
    teacher.save(tmp_path / "t.safetensors")
    (tmp_path / "study.toml").write_text(STUDY)
    arguments = ["study", tmp_path / "study.toml", "-d", "digits", "--work", tmp_path / "elsewhere"]
    assert f"Report: {tmp_path / 'report.html'}" in ssdd_command(*arguments).stdout
    page = read(tmp_path / "report.html")
    assert len(page.tiles()) == 5 and all("data-near" in a for a in page.tiles())
    assert {"steps", "results", "curves", "coverage", "settings"} <= set(page.text)
    assert "against random + teacher" in page.text["results"] and "ssdd study study.toml" in page.text["provenance"]
    ssdd_command(*arguments)  # nothing is left to do: the command is shown once
    ssdd_command("report", tmp_path, "--work", tmp_path / "elsewhere")
    assert read(tmp_path / "report.html").text["provenance"].count("ssdd study study.toml") == 1
    ssdd_command("report", tmp_path)  # without that folder
    assert read(tmp_path / "report.html").tiles() == []


@pytest.mark.parametrize("name", ["distilled.safetensors", "distilled.report.safetensors", "log.jsonl", "run.json"])
def test_a_broken_folder_is_named(runs, tmp_path, name):
    folder = tmp_path / "broken"
    shutil.copytree(runs / "first", folder)
    (folder / name).write_bytes(b'{"a"\n\xff' * 3)
    with pytest.raises(ssdd.InputError, match=re.escape(name)):
        ssdd.write_report([folder])


def test_what_is_no_run_is_refused(tmp_path, ssdd_command):
    with pytest.raises(ssdd.InputError, match="no folder"):
        ssdd.write_report([tmp_path / "nothing"])
    with pytest.raises(ssdd.InputError, match="holds no run"):
        ssdd.write_report([tmp_path])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "event", [{"step": "x"}, {"step": 1, "loss": None}, {"step": 1}, {"event": "start", "seed": []}]
)
def test_an_event_that_is_damaged_is_named(tmp_path, event):
    (tmp_path / "log.jsonl").write_text(json.dumps({"event": "distill", **event}) + "\n{}\n")
    with pytest.raises(ssdd.InputError, match=r"log\.jsonl"):
        ssdd.write_report([tmp_path])


@pytest.mark.parametrize("changes", [{"probes": {"features": 1.0}}, {"probes": {"features/0": "x"}}, {"error": [1]}])
def test_a_cell_that_is_damaged_is_named(tmp_path, changes):
    cell = {"row": "a", "from": "random", "seed": 0, "set": "source", "probes": {}, "inputs": {}}
    lines = [{"row": "a", "settings": {}}, cell | {"seed": 1}, cell | changes]
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    assert "On the source" in read(ssdd.write_report([tmp_path])).text["results"]
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ssdd.InputError, match=r"cells\.jsonl: the cell of 'a', seed 0"):
        ssdd.write_report([tmp_path])


def test_names_and_settings_stay_text(runs, tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "|")
    shutil.copytree(runs / "first", folder)
    pairs = DistilledSet.load(folder / "distilled.safetensors")
    pairs.source = HOSTILE
    pairs.save(folder / "distilled.safetensors")
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[0] |= {"command": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    lines[0]["settings"]["student"]["model"] = HOSTILE
    lines.append({"event": "warning", "message": HOSTILE})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = read(ssdd.write_report([folder], tmp_path / "one.html"))
    assert len(page.all("script")) == 1 and not page.all("img")
    assert HOSTILE in page.text[""] and HOSTILE in page.text["settings"] and HOSTILE in page.text["provenance"]
    read(ssdd.write_report([folder, runs / "second"], tmp_path / "two.html"))


def test_markup_escapes_what_it_did_not_make():
    assert tag("b", "<i>", Html("<i></i>"), title='"&') == '<b title="&quot;&amp;">&lt;i&gt;<i></i></b>'
    assert join(["<", Html("<br>")], "&") == "&lt;&<br>"
    assert tag("meta", name="x", hidden=True, id=None) == '<meta name="x" hidden>'


def test_a_band_is_mean_and_standard_error():
    curves = [Curve({"loss": {10: 1.0, 20: 2.0}}), Curve({"loss": {10: 3.0, 30: 9.0}})]
    found = band(curves, "loss")
    assert (found.steps, found.mean, found.seeds) == ([10], [2.0], 2) and found.error == pytest.approx([1.0])
    assert band(curves, "readout") is None


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.0, 7.2), (5.0, 5.0), (0.0, 0.0), (1e-9, 2e-9), (1e6, 3e7)])
def test_axes_hold_their_values(low, high):
    axis = linear(low, high)
    assert axis.low <= low and axis.high >= high and 2 <= len(axis.ticks) <= 8
    if 0 < low < high:
        axis = logarithmic(low, high)
        assert axis.low <= low * 1.001 and axis.high >= high * 0.999 and 2 <= len(axis.ticks) <= 9


def test_a_report_of_a_thousand_images_is_small(tmp_path):
    g = torch.Generator().manual_seed(0)
    sprite = make_sprite((torch.rand(1000, 32, 32, 3, generator=g) * 255).to(torch.uint8), "s")
    assert len(sprite.uri) < 5_000_000 and sprite.columns * sprite.rows >= 1000 and not sprite.reduced
    large = make_sprite((torch.rand(100, 128, 128, 3, generator=g) * 255).to(torch.uint8), "s")
    assert large.reduced and len(large.uri) < 5_000_000


def test_tensorboard(ssdd_command, tmp_path):
    arguments = ["distill", "-o", tmp_path / "run", "--steps", 4, "--tensorboard", *FAST]
    if find_spec("tensorboard") is None:
        error = ssdd_command(*arguments, fails=True).exception
        assert isinstance(error, ssdd.InputError) and "pip install 'ssdd[tensorboard]'" in str(error)
        assert not (tmp_path / "run").exists()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ssdd_command(*arguments)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "distill")).Reload()
    losses = [e for e in map(json.loads, (tmp_path / "run" / "log.jsonl").open()) if e["event"] == "distill"]
    kept = [(s.step, s.value) for s in found.Scalars("distill/loss")]
    assert kept == [(e["step"], pytest.approx(e["loss"])) for e in losses] and len(kept) == 2
