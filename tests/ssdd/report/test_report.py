"""Run directories, log, pictures and tables."""

import dataclasses
import io
import json
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ssdd.cli.teacher import _worth_little as worthless_teacher
from ssdd.cli.teacher import print_probes
from ssdd.config import InputError, Pulse, TeacherConfig
from ssdd.data import ImageSet
from ssdd.evaluation import Cell
from ssdd.report import (
    Display,
    JsonLines,
    both,
    comparisons,
    contact_sheet,
    coverage,
    images_over_steps,
    legend,
    loss_curves,
    markdown,
    new_directory,
    new_file,
    sentences,
    table,
    worth_little,
)
from ssdd.report.tables import KMEANS, KRR_ST, NO_PRETRAINING, RANDOM, TEACHER
from ssdd.teachers import train_teacher


def test_a_run_directory_is_never_overwritten_without_the_option(tmp_path):
    folder = new_directory(tmp_path / "run")
    (folder / "log.jsonl").write_text("{}\n")
    (folder / "precious").write_text("x")
    with pytest.raises(InputError, match="not empty; choose another directory or give --overwrite"):
        new_directory(folder)
    (folder / "run.json").write_text("{}")
    with pytest.raises(InputError, match="go on with `--resume .*run`, choose another"):
        new_directory(folder)
    assert (folder / "precious").exists()
    assert list(new_directory(folder, overwrite=True).iterdir()) == []


def test_overwrite_spares_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not overwritten"):
        new_directory(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(InputError, match="is a file"):
        new_directory(tmp_path / "thesis.tex", overwrite=True)
    with pytest.raises(InputError, match="exists"):
        new_file(tmp_path / "thesis.tex")


def test_log_is_written_as_it_happens_and_says_why_it_stopped(tmp_path):
    file = tmp_path / "log.jsonl"
    with pytest.raises(RuntimeError), JsonLines(file) as log:
        log({"event": "distill", "loss": 0.5})
        assert json.loads(file.read_text())["loss"] == 0.5
        raise RuntimeError("power cut")
    last = json.loads(file.read_text().splitlines()[-1])
    assert last["event"] == "stopped" and "power cut" in last["error"] and last["seconds"] >= 0


def test_log_of_a_resumed_run_goes_on(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"event": "a"}\n{"event": "half')  # killed during a write
    with JsonLines(file, append=True) as log:
        log({"event": "b"})
    lines = file.read_text().splitlines()
    assert lines[1] == '{"event": "half' and [json.loads(lines[i])["event"] for i in (0, 2)] == ["a", "b"]


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    file, limits = tmp_path / "log.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonLines(file) as log:
        log({"event": "a"})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 5, limits[1]))
            log({"event": "b"})
            log({"event": "c"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log({"event": "d"})
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["a", "d"]
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_display_takes_every_event():
    with Display(show=False) as display:
        for stage in ("pool", "distill", "pretrain"):
            display({"event": stage, "step": 1, "steps": 2, "loss": 0.1, "task": "seed 0"})
            display({"event": stage, "step": 2, "steps": 2, "loss": 0.1, "task": "seed 0"})
        display({"event": "cell", "method": "x"})


def test_progress_reaches_displays_alone(few, small, tmp_path):
    """A display moves within an epoch; a plain report and the log get the events of before."""
    shown, plain = [], []

    class Moving:
        moves = True

        def __call__(self, event):
            shown.append(event)

    config = dataclasses.replace(small.teacher, epochs=2)
    with JsonLines(tmp_path / "log.jsonl") as log:
        train_teacher(few, config, both(Moving(), plain.append, log))
    assert [event["event"] for event in plain] == ["teacher", "teacher"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    first = shown[0]
    assert first == {"event": "progress", "stage": "teacher", "step": 0, "steps": plain[-1]["steps"]}
    seen = []
    pulse = Pulse(both(Moving(), seen.append), "pretrain", 10, every=0.0)
    for step in range(10):
        pulse(step)
    assert [event["step"] for event in shown[-10:]] == list(range(10)) and not seen


def test_a_display_begins_at_the_step_of_a_resumed_run():
    with Display(show=False) as display:
        display({"event": "progress", "stage": "distill", "step": 500, "steps": 1000})
        [task] = display._progress.tasks
        assert task.completed == 500 and not task.speed
        display({"event": "distill", "step": 600, "steps": 1000, "loss": 0.1})
        assert task.completed == 600 and task.fields["note"] == ("loss 0.1",)
        display({"event": "progress", "stage": "distill", "step": 650, "steps": 1000})
        assert task.completed == 650 and task.fields["note"] == ("loss 0.1",)


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_shows_every_image(tmp_path, channels):
    images = torch.zeros(5, channels, 8, 8)
    images[3] = 2.0  # beyond white is white
    contact_sheet(images, tmp_path / "sheet.png", columns=3)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape[:2] == (2 * 66 + 2, 3 * 66 + 2)
    assert (pixels[68:132, 2:66] == 255).all() and (pixels[2:66, 2:66] == 0).all()
    with pytest.raises(InputError, match="images"):
        contact_sheet(torch.zeros(0, 1, 8, 8), tmp_path / "none.png")


def test_plots_are_pictures(tmp_path):
    g = torch.Generator().manual_seed(0)
    images_over_steps({0: torch.rand(4, 1, 8, 8, generator=g), 10: torch.rand(4, 1, 8, 8)}, tmp_path / "a.png")
    loss_curves({0: [(10, 1.0), (20, 0.5)], 1: [(10, 0.9), (20, 0.6)]}, tmp_path / "b.png")
    r = torch.randn(30, 5, generator=g)
    coverage(r, r[:3], tmp_path / "c.png", torch.arange(30) % 3)
    coverage(r, r[:3], tmp_path / "d.png")
    for name in "abcd":
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("L").getcolors()) > 5


def cells(saturated=True):
    low = 98.0 if saturated else 60.0
    found = []
    for seed, shift in enumerate((0.0, 0.1, 0.2)):
        for method, error, all_labels in (
            (TEACHER, 0.0, 99.0),
            (KRR_ST, 0.3 + shift, 98.5),
            (RANDOM, 0.5 + shift, 98.2),
            (NO_PRETRAINING, None, low),
            (KMEANS, 0.31 + shift * 1.5 - 0.1, 98.3),
        ):
            probes = {"features/5": 80.0 + seed, "features/0": all_labels}
            found.append({"method": method, "seed": seed, "error": error, "probes": probes})
    return found


def test_table_rows_and_numbers():
    rows = table(cells())
    assert [row[0] for row in rows[1:]] == [NO_PRETRAINING, RANDOM, KMEANS, KRR_ST, TEACHER]
    assert rows[4][1] == "0.400 ± 0.058" and rows[1][1] == "" and rows[0][-1] == "probe, all labels"
    assert markdown(rows).count("\n") == 6


def test_labels_in_words(capsys):
    cell = Cell(TEACHER, 0, None, {"features/1": 1.0, "features/5": 2.0, "features/0": 3.0})
    expected = ["probe, 1 label per class", "probe, 5 labels per class", "probe, all labels"]
    assert table([cell.as_dict()])[0][2:] == expected
    print_probes(cell)
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == expected


def test_comparisons_and_sentences():
    found = comparisons(cells())
    assert found[RANDOM].significant and found[RANDOM].reduction == pytest.approx(1 / 3)
    assert not found[KMEANS].significant
    text = " ".join(sentences(cells()))
    assert "33.3% lower" in text and "NOT more than two" in text and "saturated" in text
    assert "50.0% HIGHER" in " ".join(sentences([{**c, "error": 0.9} if c["method"] == KRR_ST else c for c in cells()]))
    assert "saturated" not in " ".join(sentences(cells(saturated=False)))
    worse = [{**c, "probes": {"features/0": 60.0}} if c["method"] == TEACHER else c for c in cells()]
    text = " ".join(sentences(worse))
    assert "teacher itself reads out worse than no pre-training (60.0% and" in text and "saturated" not in text


def test_a_single_seed_makes_no_claim():
    one = [c for c in cells() if c["seed"] == 0]
    output = " ".join(sentences(one))
    assert "no standard error" in output and "nan" not in output and table(one)[4][1] == "0.300"


def test_columns_are_explained_and_worthless_rows_are_named():
    assert worth_little(cells()) == []
    explained = " ".join(legend(cells()))
    assert (
        "1 is predicting the mean" in explained and "linear classifier" in explained and "fine-tuned" not in explained
    )
    bad = [{"method": "mine", "seed": 0, "error": 22.0, "probes": {}, "finetuned": 50.0}]
    assert legend(bad)[-1].startswith("fine-tuned: accuracy")
    [line] = worth_little(bad)
    assert line.startswith("mine: error 22 is worse than predicting the mean") and "Train longer" in line
    assert line in sentences(bad)
    assert "no better" in worth_little([{**bad[0], "error": 1.0}])[0]
    [line] = worth_little([{**bad[0], "error": float("inf")}, *bad])  # of one held-out image
    assert line.startswith("The teacher has one and the same representation for all held-out images")
    half = Cell("x", 0, None, {"features/5": 55.0}), digits_like(torch.tensor([0, 0, 1, 1]))
    assert "largest class gives 50.0%" not in worthless_teacher(Cell("x", 0, None, {"features/5": 65.0}), half[1])
    assert "largest class gives 50.0%" in worthless_teacher(Cell("x", 0, None, {"features/5": 52.0}), half[1])


def digits_like(labels):
    images = torch.zeros(4, 8, 8, 1, dtype=torch.uint8)
    return ImageSet("x", images, images, labels, labels)


def test_the_display_says_how_long_a_stage_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ssdd.report.progress.time.monotonic", lambda: now[0])
    for seconds, output in ((2.0, "training the teacher: about 33 min to go (990 steps of 2 s)"), (0.01, None)):
        out = io.StringIO()
        with Display(Console(file=out, width=200)) as display:
            for step in range(20):
                display({"event": "progress", "stage": "teacher", "step": step, "steps": 1000})
                now[0] += seconds
            for step in range(20):  # the time of a stopped run that goes on is not counted
                display({"event": "progress", "stage": "distill", "step": 500 + step, "steps": 560})
                now[0] += seconds
        assert ("about" in out.getvalue()) == (output is not None), out.getvalue()
        assert out.getvalue().count("training the teacher: about") == bool(output)
        assert "distilling: about" not in out.getvalue() or "2 s)" in out.getvalue()


def test_filling_the_pool_is_not_counted_as_steps(monkeypatch):
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr("ssdd.report.progress.time.monotonic", lambda: now[0])
    with Display(Console(file=out, width=200)) as display:
        for step in range(40):
            if step < 10:
                for done in (0, 1):
                    display({"event": "progress", "stage": "pool", "step": done, "steps": 2})
                    now[0] += 50.0
            display({"event": "progress", "stage": "distill", "step": step, "steps": 1000})
            now[0] += 1.0
    assert "distilling: about 16 min to go (986 steps of 1 s)" in out.getvalue(), out.getvalue()


def test_the_first_network_of_a_pool_gives_the_estimate(monkeypatch):
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr("ssdd.report.progress.time.monotonic", lambda: now[0])
    with Display(Console(file=out, width=200)) as display:
        for done in range(20):
            display({"event": "progress", "stage": "pool", "step": done / 100, "steps": 5})
            now[0] += 2.0
    assert "filling the pool: about 16 min to go (5 networks of 3 min)" in out.getvalue(), out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_progress_shows_the_steps_and_the_time_at_any_width(width):
    out = io.StringIO()
    event = {"event": "distill", "step": 10_216, "steps": 160_000, "loss": 0.00011114, "lr": 0.01}
    with Display(Console(file=out, width=width, force_terminal=True, color_system=None)) as display:
        display({**event, "mean_age": 12.0, "untrained_share": 0.5})
    line = [line for line in out.getvalue().splitlines() if "distilling" in line][-1]
    assert " 10216/160000 -:--:-- loss 0.0001111" in line and "…" not in line
    assert ("untrained" in line) == (width == 200) and ("lr" in line) == (width > 60)


def test_short_sets_get_more_epochs():
    steps = TeacherConfig().steps
    assert [steps(n) for n in (10, 120, 1297, 10_000, 50_000)] == [300, 300, 1000, 1014, 3900]
    assert TeacherConfig(epochs=3).steps(1297) == 15
