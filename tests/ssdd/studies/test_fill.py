"""The study runner: cells on disk, what a second run skips, and what it refuses."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest

from ssdd.artifact import DistilledSet
from ssdd.cli.study import duration
from ssdd.config import METHOD_NAMES, SELECTION_NAMES, InputError
from ssdd.data import load_images
from ssdd.models import ConvNet
from ssdd.report import write_page
from ssdd.studies import read_cells, read_plan, run_study
from ssdd.studies.fill import estimate_remaining
from ssdd.teachers import Teacher, represent, train_teacher

FILE = """
preset = "digits"
seeds = 2
[set]
"student.model" = "convnet-4-8"
"distill.images" = 10
"distill.steps" = 12
"distill.batch" = 64
"distill.pool" = 2
"distill.pool_steps" = 3
"distill.log_every" = 4
"pretrain.steps" = 8
"evaluate.labels" = [5, 0]
"evaluate.draws" = 1
"finetune.share" = 0.1
"finetune.steps" = 4
"finetune.crop_pad" = 1
[[row]]
name = "no pre-training"
from = "nothing"
[[row]]
name = "random + teacher"
from = "random"
[[row]]
name = "KRR-ST, the code's pool"
from = "krr-st"
seeds = 1
[row.set]
"distill.pool_counter" = "stuck"
[[row]]
name = "the same images"
from = "recomputed"
of = "KRR-ST, the code's pool"
[[row]]
name = "full set"
from = "full set"
seeds = 1
[[row]]
name = "teacher"
from = "teacher"
seeds = 1
"""


@pytest.fixture
def place(tmp_path, few, teacher):
    """A folder with the study's file, the images, a target set and the teacher."""
    (tmp_path / "study.toml").write_text(FILE)
    arrays = {k: getattr(few, k).numpy() for k in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(tmp_path / "few.npz", **arrays)
    np.savez(tmp_path / "other.npz", **{k: v[::-1][:90].copy() for k, v in arrays.items()})
    teacher.save(tmp_path / "teacher.safetensors")
    return tmp_path


def run(place, *, every=None, **changes):
    """Compute the study; return its events of finished cells. ``every`` returns all events."""
    events = [] if every is None else every
    names = {
        "data": place / "few.npz",
        "teacher": str(place / "teacher.safetensors"),
        "targets": {"Other": place / "other.npz"},
    } | changes
    more = {key: names.pop(key) for key in ("work", "workers") if key in names}
    plan = dataclasses.replace(read_plan(place / "study.toml"), **names)
    run_study(plan, place, report=events.append, **more)
    return [e for e in events if e["event"] == "study"]


def cells(place):
    return read_cells(place / "cells.jsonl")


def take_out(place, *keys):
    """Write the file again without some cells."""

    def key(line):
        cell = json.loads(line)
        return cell["row"], cell.get("seed"), cell.get("set")

    lines = (place / "cells.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if key(line) not in keys]
    (place / "cells.jsonl").write_bytes(b"".join(kept))
    assert len(lines) - len(kept) == len(keys)


@pytest.mark.parametrize("targets", ["teacher", "labels"])
def test_a_row_of_every_selection(place, targets):
    rows = [f'[[row]]\nname = "{n}"\nfrom = "{n}"\ntargets = "{targets}"\n' for n in SELECTION_NAMES]
    shared = FILE.partition("[[row]]")[0].replace("seeds = 2", "seeds = 1")
    (place / "study.toml").write_text(shared + "".join(rows))
    events = run(place, targets={})
    assert [e["row"] for e in events] == list(SELECTION_NAMES)
    kinds = {"teacher": "representation", "labels": "labels"}
    for name in SELECTION_NAMES:
        pairs = DistilledSet.load(place / "work" / f"{name}.seed-0.pairs.safetensors")
        assert pairs.method == name and pairs.target_kind == kinds[targets] and len(pairs) == 10


def test_a_row_of_every_method(place):
    rows = [f'[[row]]\nname = "{n}"\nfrom = "{n}"\n' for n in METHOD_NAMES]
    shared = FILE.partition("[[row]]")[0].replace("seeds = 2", "seeds = 1")
    (place / "study.toml").write_text(shared + "".join(rows))
    events = run(place, targets={})
    assert [e["row"] for e in events] == list(METHOD_NAMES)
    for name in METHOD_NAMES:
        pairs = DistilledSet.load(place / "work" / f"{name}.seed-0.pairs.safetensors")
        cell = cells(place)[name, 0, "source"]
        assert pairs.method == name and cell["distillation"]["steps"] == 12
        assert (cell["error"] is None) == (pairs.target_kind != "representation")
    page = write_page(read_plan(place / "study.toml"), place).read_text()
    assert all(f"| {name} |" in page for name in METHOD_NAMES)
    realism = cells(place)["krr-st", 0, "source"]["distillation"]["realism"]
    assert set(realism) == {"pixels", "teacher", "another network"}
    assert all(0 < found["nearest"] < 1 and found["start"] > 0 for found in realism.values())
    assert "teacher, to the nearest training image" in page


@pytest.mark.parametrize(
    "row, message",
    [
        ('from = "dm"', "row by labels: method: 'dm' learns from labels"),
        ('from = "random"\ntargets = "labels"', "row by labels: .*expected labelled training images"),
    ],
)
def test_a_row_that_needs_labels_is_refused_before_any_row_is_computed(place, few, row, message):
    np.savez(place / "few.npz", x_train=few.x_train.numpy(), x_test=few.x_test.numpy())
    (place / "study.toml").write_text(FILE + f'[[row]]\nname = "by labels"\n{row}\n')
    with pytest.raises(InputError, match=message):
        run(place, targets={})
    assert not cells(place)


def numbers(found):
    """Return the values that do not depend on the clock."""
    return {
        key: {k: v for k, v in cell.items() if k not in ("cpu_seconds", "distillation")} for key, cell in found.items()
    }


KRR, NOTHING, RANDOM = "KRR-ST, the code's pool", "no pre-training", "random + teacher"


def test_cells_are_filled_seed_by_seed_and_a_rerun_skips_them(place):
    events = run(place)
    assert [(e["row"], e["seed"], e["set"]) for e in events][:4] == [
        ("no pre-training", 0, "source"),
        ("no pre-training", 0, "Other"),
        ("random + teacher", 0, "source"),
        ("random + teacher", 0, "Other"),
    ]
    assert [e["seed"] for e in events] == [0] * 12 + [1] * 4
    assert events[-1]["done"] == events[-1]["of"] == 16 and events[-1]["left"] == 0
    text, before = (place / "cells.jsonl").read_bytes(), cells(place)
    assert len(before) == 16 and run(place) == [] and (place / "cells.jsonl").read_bytes() == text
    lines = [json.loads(line) for line in text.splitlines()]
    assert sum("settings" in line for line in lines) == 6 and len(lines) == 22  # once per row
    cell = before[KRR, 0, "source"]
    assert cell["error"] > 0 and set(cell["probes"]) == {f"{w}/{n}" for w in ("features", "output") for n in (5, 0)}
    assert 0 <= cell["finetuned"] <= 100 and cell["distillation"]["untrained_share"] > 0.3
    assert 0 < cell["distillation"]["total_variation"] < 1
    recomputed = before["the same images", 0, "source"]
    assert recomputed["error"] not in (None, cell["error"]) and "distillation" not in recomputed
    other = before[KRR, 0, "Other"]
    assert other["error"] is None and other["probes"]
    bare = before[NOTHING, 1, "source"]
    assert bare["error"] is None and "output/0" not in bare["probes"] and "pretrain" not in bare["settings"]
    assert before["teacher", 0, "source"]["error"] == 0


def test_a_cell_that_is_lost_comes_back_the_same(place):
    run(place)
    before = cells(place)
    take_out(place, (RANDOM, 1, "Other"), (KRR, 0, "source"))
    (place / "work" / "random-teacher.seed-1.network.safetensors").unlink()
    assert len(run(place)) == 2
    assert numbers(cells(place)) == numbers(before)


def test_the_number_of_workers_changes_no_number(place, tmp_path):
    run(place)
    one = numbers(cells(place))
    (place / "cells.jsonl").unlink()
    every = []
    events = run(place, every=every, workers=2, work=tmp_path / "two")
    assert numbers(cells(place)) == one and events[-1]["done"] == events[-1]["of"] == 16
    assert {e["task"] for e in every if e["event"] == "distill"} == {f"{KRR}, seed 0"}


def test_pairs_from_their_file_give_the_bits_of_pairs_just_made(place, few):
    """Also in colour: real images have the channels of a pixel side by side in memory."""
    for name, part in (("few", slice(None)), ("other", slice(90))):
        arrays = {k: getattr(few, k).numpy()[part] for k in ("x_train", "y_train", "x_test", "y_test")}
        np.savez(place / f"{name}.npz", **{k: v.repeat(3, 3) if k[0] == "x" else v for k, v in arrays.items()})
    backbone = ConvNet(3, (8, 8), (4, 16), pooled=True)
    about = {"channels": 3, "size": [8, 8], "widths": [4, 16]}
    Teacher(backbone, load_images(place / "few.npz").preprocessing, about).save(place / "teacher.safetensors")
    run(place)
    made = numbers(cells(place))
    (place / "cells.jsonl").unlink()
    for file in (place / "work").glob("*.network.safetensors"):
        file.unlink()
    run(place)
    assert numbers(cells(place)) == made


def test_killed_at_any_moment_it_goes_on_to_the_same_cells(fork_server, place, tmp_path):
    whole = tmp_path / "whole"
    run(place, workers=1, work=whole / "work")
    reference = numbers(cells(place))
    (place / "cells.jsonl").unlink()
    files = ["--data", place / "few.npz", "--teacher", place / "teacher.safetensors"]
    command = ["study", place / "study.toml", *files, "--target", f"Other={place / 'other.npz'}"]
    for after in (1, 3):
        started = fork_server(1, *command)
        limit = time.monotonic() + 60
        while len(cells(place)) < after:
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(started.pids[0], signal.SIGKILL)
        assert started.wait()[0] == [-signal.SIGKILL]
    codes, message = fork_server(1, *command).wait()
    assert codes == [0], message
    assert numbers(cells(place)) == reference
    assert "16 of 16 cells" in (place / "README.md").read_text()


def test_a_cell_of_another_configuration_is_refused(place):
    run(place)
    text = (place / "study.toml").read_text()
    (place / "study.toml").write_text(text.replace('"distill.steps" = 12', '"distill.steps" = 13'))
    with pytest.raises(InputError, match=r"KRR-ST.*distill\.steps: 12 there, 13 here"):
        run(place)
    (place / "study.toml").write_text(text.replace('"evaluate.draws" = 1', '"evaluate.draws" = 2'))
    with pytest.raises(InputError, match=r"evaluate\.draws"):
        run(place)
    (place / "study.toml").write_text(text)
    with pytest.raises(InputError, match="Other: "):
        run(place, targets={"Other": place / "few.npz"})
    with (place / "cells.jsonl").open("ab") as file:
        file.write(b"{\n")
    with pytest.raises(InputError, match="line 23: not a readable cell"):
        run(place)


@pytest.mark.parametrize(
    "change, message",
    [
        (("seeds = 2", "seeds = 0"), "seeds: expected a whole number"),
        (('from = "random"', 'from = "random"\ntargets = "names"'), "targets: expected one of teacher, labels"),
        (('from = "nothing"', 'from = "nothing"\ntargets = "labels"'), "for a selection only"),
        (('from = "nothing"', 'from = "noting"'), "from: expected one of nothing"),
        (('name = "teacher"', 'name = "full set"'), "a name of its own"),
        (('"distill.steps" = 12', '"distill.stepz" = 12'), "stepz"),
        (('"distill.steps" = 12', "distill.steps = 12"), "the name in quotes"),
        (('preset = "digits"', 'preset = "digits"\npresets = 1'), "got presets"),
        (('of = "KRR', 'of = "KR'), "of: expected the name of a distilled row above"),
        (('preset = "digits"', "preset ="), "not a readable study"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, change, message):
    (tmp_path / "s.toml").write_text(FILE.replace(*change))
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "s.toml")


def test_data_of_a_file_are_beside_it_or_named(tmp_path):
    for name, expected in (("digits", "digits"), ("hf:org/set", "hf:org/set"), ("x.npz", tmp_path / "x.npz")):
        (tmp_path / "s.toml").write_text(f'data = "{name}"\n{FILE}')
        assert read_plan(tmp_path / "s.toml").data == expected
    (tmp_path / "s.toml").write_text(f'data = "./digits"\n{FILE}', encoding="utf-8-sig")  # with a byte order mark
    assert read_plan(tmp_path / "s.toml").data == tmp_path / "digits"


def test_later_rows_come_last(tmp_path):
    (tmp_path / "s.toml").write_text(FILE.replace('from = "random"', 'from = "random"\nlater = true'))
    order = [(row.name, seed) for row, seed in read_plan(tmp_path / "s.toml").order()]
    assert order[-2:] == [("random + teacher", 0), ("random + teacher", 1)] and len(order) == 8
    both = FILE.replace('from = "random"', 'from = "random"\nlater = true').replace(
        'from = "nothing"', 'from = "nothing"\nlater = true'
    )
    (tmp_path / "s.toml").write_text(both)
    order = [(row.name, seed) for row, seed in read_plan(tmp_path / "s.toml").order()]
    assert [seed for _, seed in order[-4:]] == [0, 1, 0, 1] and len({name for name, _ in order[-4:-2]}) == 1


def test_missing_data_or_teacher_is_named(place):
    with pytest.raises(InputError, match="data: expected it in"):
        run(place, data=None)
    with pytest.raises(InputError, match="teacher: expected it in"):
        run(place, teacher=None)
    with pytest.raises(InputError, match="target Other: wide: .* its images have no labels"):
        np.savez(place / "wide.npz", x_train=np.zeros((4, 16, 16), np.uint8))
        run(place, targets={"Other": place / "wide.npz"})


def test_a_target_is_brought_to_the_sources_size_and_channels(place, few):
    """Its cells are those of the images that the loader resized."""
    x = {part: getattr(few, f"x_{part}")[:60].repeat(1, 2, 2, 3).numpy() for part in ("train", "test")}
    labels = {f"y_{part}": getattr(few, f"y_{part}")[:60].numpy() for part in ("train", "test")}
    np.savez(place / "wide.npz", x_train=x["train"], x_test=x["test"], **labels)
    rows = tuple(row for row in read_plan(place / "study.toml").rows if row.source == "nothing")
    events = []
    run(place, every=events, rows=rows, targets={"Wide": place / "wide.npz"})
    summaries = [event.get("summary", "") for event in events]
    assert any("resized from 16x16 to 8x8, colour made grey" in text for text in summaries)
    assert cells(place)["no pre-training", 0, "Wide"]["finetuned"] is not None


def test_the_time_left(place):
    plan = read_plan(place / "study.toml")
    done = [{"row": "a", "set": "source", "cpu_seconds": {"x": 4.0, "y": 2.0}}]
    assert estimate_remaining([], [(plan.rows[0], 0, "source")]) is None
    assert estimate_remaining(done, [(plan.rows[0], 0, "source")] * 2) == 12
    assert estimate_remaining(done, [(plan.rows[0], 0, "elsewhere")]) is None
    assert [duration(s) for s in (40, 700, 11100)] == ["40 s", "12 min", "3 h 05 min"]


OWN = """
[[row]]
name = "KRR-ST, another teacher"
from = "krr-st"
seeds = 1
teacher = "other.safetensors"
[[row]]
name = "recomputed, another teacher"
from = "recomputed"
of = "KRR-ST, another teacher"
seeds = 1
[[row]]
name = "another teacher"
from = "teacher"
seeds = 1
teacher = "other.safetensors"
"""


def test_a_row_with_a_teacher_of_its_own(place, few, small):
    config = dataclasses.replace(small.teacher, method="simclr", widths=(16, 12), epochs=2)
    other = train_teacher(few, config)
    other.save(place / "other.safetensors")
    run(place)
    before = cells(place)
    (place / "study.toml").write_text(FILE + OWN)
    events = run(place)
    assert {e["row"] for e in events} == {"KRR-ST, another teacher", "recomputed, another teacher", "another teacher"}
    after = cells(place)
    assert all(after[key] == cell for key, cell in before.items())  # the other rows' cells stay valid
    cell = after["KRR-ST, another teacher", 0, "source"]
    old = before["teacher", 0, "source"]["inputs"]["teacher"]
    assert cell["inputs"]["teacher"] == other.key() != old
    own = after["another teacher", 0, "source"]
    assert own["error"] == 0 and own["probes"] != before["teacher", 0, "source"]["probes"]
    pairs = DistilledSet.load(place / "work" / "krr-st-another-teacher.seed-0.pairs.safetensors")
    assert pairs.targets.shape[1] == represent(other, few).dimension == 12
    page = write_page(read_plan(place / "study.toml"), place).read_text()
    assert "| KRR-ST, the code's pool | random + teacher |" in page
    assert "| KRR-ST, another teacher | random + teacher |" not in page  # errors of different teachers: no comparison
    Teacher(train_teacher(few, dataclasses.replace(config, seed=1)).module, few.preprocessing, other.about).save(
        place / "other.safetensors"
    )
    with pytest.raises(InputError, match="teacher: .* there"):
        run(place)


def test_no_study_teacher_is_needed_if_every_row_has_its_own(place, teacher):
    teacher.save(place / "own.safetensors")
    text = FILE.split("[[row]]")[0]
    row = '[[row]]\nname = "r"\nfrom = "random"\nseeds = 1\nteacher = "own.safetensors"\n'
    (place / "study.toml").write_text(text + row)
    assert len(run(place, teacher=None)) == 2
