"""Rows that share pairs, variants, imported pairs and target-data-free distillation in a study."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssdd.artifact import DistilledSet, read_safetensors
from ssdd.config import FINETUNE, PRESETS, ClassifierConfig, InputError
from ssdd.report import EVENTS, JsonLines, write_page
from ssdd.report.record import read_record
from ssdd.studies import estimate_study, find_study, read_cells, read_plan, run_study, shipped_studies
from ssdd.teachers import train_classifier

SHARED = """
preset = "digits"
seeds = 1
data = "few.npz"
teacher = "teacher.safetensors"
measure_source = false
[targets]
Other = "other.npz"
[set]
"student.model" = "convnet-4-8"
"distill.images" = 10
"distill.steps" = 6
"distill.batch" = 64
"distill.pool" = 2
"distill.pool_steps" = 3
"pretrain.steps" = 4
"evaluate.labels" = []
"kd.epochs" = 2
"kd.batch" = 8
"""
FINETUNED = SHARED + '"finetune.share" = 0.5\n"finetune.steps" = 2\n"finetune.crop_pad" = 1\n'
ROWS = """
[[row]]
name = "scratch"
from = "nothing"
[[row]]
name = "random + teacher"
from = "random"
[[row]]
name = "KRR-ST"
from = "krr-st"
[[row]]
name = "teacher"
from = "teacher"
"""
WIDER = """
[[variant]]
name = "wider"
[variant.set]
"student.model" = "convnet-8-8"
"""
IMPORTED = '[[row]]\nname = "DSA"\nfrom = "imported"\nfile = "dsa.safetensors"\n'


@pytest.fixture
def place(tmp_path, few, teacher):
    arrays = {k: getattr(few, k).numpy() for k in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(tmp_path / "few.npz", **arrays)
    np.savez(tmp_path / "other.npz", **{k: v[:90] for k, v in arrays.items()})
    teacher.save(tmp_path / "teacher.safetensors")
    return tmp_path


def run(place, text):
    (place / "study.toml").write_text(text)
    events = []
    run_study(read_plan(place / "study.toml"), place, report=events.append)
    return events, read_cells(place / "cells.jsonl")


def test_a_variant_uses_the_pairs_of_its_row(place):
    events, cells = run(place, FINETUNED + ROWS + WIDER)
    names = ["scratch", "random + teacher", "KRR-ST", "teacher"]
    assert [row for row, _, _ in cells] == [*names, *(f"{name}, wider" for name in names[:3])]
    assert all(on == "Other" for _, _, on in cells)  # measure_source = false
    assert sum(e["event"] == "distill" and e["step"] == e["steps"] for e in events) == 1
    one, other = cells["KRR-ST", 0, "Other"], cells["KRR-ST, wider", 0, "Other"]
    assert other["from"] == "krr-st" and other["variant"] == "wider" and "variant" not in one
    assert other["settings"]["student"]["model"] == "convnet-8-8"
    assert other["settings"]["pairs"]["student"]["model"] == "convnet-4-8"
    assert other["budget"] == one["budget"]
    pairs = DistilledSet.load(place / "work" / "krr-st.seed-0.pairs.safetensors")
    assert one["budget"] == {"images": 10, "bytes": 4 * (pairs.images.numel() + pairs.targets.numel()), "steps": 4}
    assert all(cell["finetuned"] is not None and not cell["probes"] for cell in cells.values())
    changed = FINETUNED.replace('"distill.steps" = 6', '"distill.steps" = 7') + ROWS + WIDER
    with pytest.raises(InputError, match=r"distill\.steps: 6 there, 7 here"):
        run(place, changed)
    page = write_page(read_plan(place / "study.toml"), place).read_text()
    assert "| fine-tuned, 50% of the labels | convnet-4-8 | wider |" in page
    assert f"| KRR-ST | {one['finetuned']:.1f} | {other['finetuned']:.1f} |" in page
    assert "| KRR-ST, wider | random + teacher, wider |" not in page.partition("## Against")[0]
    assert "| KRR-ST, wider | random + teacher, wider |" in page.partition("## Against")[2]
    assert "| KRR-ST, wider | random + teacher |" not in page
    assert "| KRR-ST | 10 | 3 | 4 |" in page  # images, kB, steps
    cells_file = (place / "cells.jsonl").read_text()
    (place / "cells.jsonl").write_text(cells_file.replace('"budget"', '"unknown"', 1))  # as of an older version
    assert "What the rows were given" not in write_page(read_plan(place / "study.toml"), place).read_text()


def logged(place, events):
    """Return what a report shows of the study, when one more call of `ssdd study` has logged these events."""
    with JsonLines(place / "work" / EVENTS, append=True) as log:
        for event in ({"event": "start", "command": "ssdd study"}, *events):
            log(event)
    return read_record(place)


def test_imported_pairs_are_a_row_or_are_missing(place, few):
    text = FINETUNED + IMPORTED + ROWS.partition('[[row]]\nname = "KRR-ST')[0] + WIDER
    events, cells = run(place, text)
    assert "Warning: row DSA: missing, as" in " ".join(logged(place, events).notes)
    warnings = [e["message"] for e in events if e["event"] == "warning"]
    assert [w.partition(",")[0] for w in warnings] == ["row DSA: missing", "row DSA"]
    assert "DSA" not in {row for row, _, _ in cells} and len(cells) == 4
    assert "| DSA | missing | missing |" in write_page(read_plan(place / "study.toml"), place).read_text()
    images = few.x_train[:10].permute(0, 3, 1, 2) / 255
    pairs = DistilledSet(images, torch.eye(10), few.preprocessing, method="DSA", target_kind="labels")
    dataclasses.replace(pairs, images=torch.rand(10, 1, 9, 9)).save(place / "dsa.safetensors")
    with pytest.raises(InputError, match=r"row DSA: file: expected images of \[1, 8, 8\] as the data have"):
        run(place, text)
    pairs.save(place / "dsa.safetensors")
    events, cells = run(place, text)
    kept = logged(place, [{"event": "warning", "message": "a picture"}]).notes
    assert "Warning: a picture" in kept and "missing, as" not in " ".join(kept)  # the row is there now
    assert logged(place, events).notes == kept
    assert cells["DSA", 0, "Other"]["from"] == cells["DSA, wider", 0, "Other"]["from"] == "imported"
    assert cells["DSA", 0, "Other"]["budget"]["bytes"] == 4 * (10 * 64 + 10)  # a label is one number
    dataclasses.replace(pairs, targets=pairs.targets.flip(0)).save(place / "dsa.safetensors")
    with pytest.raises(InputError, match="pairs: .* there"):
        run(place, text)


def test_target_data_free_distillation_is_a_measure_of_a_row(place, few):
    config = ClassifierConfig(model="convnet-4-8", epochs=3, crop_pad=1, flip=False)
    train_classifier(few, config).save(place / "c.safetensors")
    noise = '[[row]]\nname = "noise"\nfrom = "nothing"\n[row.set]\n"kd.images" = "noise"\n'
    modes = '[[variant]]\nname = "official"\n[variant.set]\n"kd.mode" = "train"\n"kd.input" = "raw"\n'
    known = '[classifiers]\nOther = "c.safetensors"\n'
    rows = ROWS.partition('[[row]]\nname = "random')[2].partition('[[row]]\nname = "teacher')[0]
    rows = '[[row]]\nname = "random' + rows
    _, cells = run(place, SHARED + known + rows + noise + modes)
    assert len(cells) == 6
    for cell in cells.values():
        assert set(cell["kd"]) == {"student", "teacher"} and cell["finetuned"] is None
        assert cell["inputs"]["classifier"]
    assert cells["KRR-ST", 0, "Other"]["settings"]["kd"]["mode"] == "eval"
    assert cells["KRR-ST, official", 0, "Other"]["settings"]["kd"]["mode"] == "train"
    page = write_page(read_plan(place / "study.toml"), place).read_text()
    assert "| target-data-free | convnet-4-8 | official |" in page
    assert "| KRR-ST, official | noise, official |" in page
    with pytest.raises(InputError, match='row scratch: kd.images: a row from "nothing" has no images'):
        run(place, SHARED + known + ROWS)
    two = few.y_train.clamp(max=1)
    short = dataclasses.replace(few, y_train=two, y_test=few.y_test.clamp(max=1))
    train_classifier(short, config).save(place / "c.safetensors")
    with pytest.raises(InputError, match="row random .*: teacher: it was trained for another task"):
        run(place, SHARED + known + rows)


def test_a_row_names_the_row_that_it_is_compared_with_also_in_a_variant(tmp_path):
    other = '[[row]]\nname = "cosine"\nfrom = "krr-st"\nagainst = "KRR-ST"\n'
    (tmp_path / "study.toml").write_text(SHARED + ROWS + other + WIDER)
    named = {row.name: row.against for row in read_plan(tmp_path / "study.toml").rows}
    assert {name: against for name, against in named.items() if against} == {
        "cosine": "KRR-ST",
        "cosine, wider": "KRR-ST, wider",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ('[[row]]\nname = "x"\nfrom = "imported"\n', "file: expected a file of pairs"),
        ('[[row]]\nname = "x"\nfrom = "random"\nfile = "y"\n', "file: expected a file of pairs"),
        ('[[row]]\nname = "x"\nfrom = "reused"\nof = "scratch"\n', "of: expected the name of a row with pairs"),
        ('[[row]]\nname = "x"\nfrom = "random"\nof = "KRR-ST"\n', "of: expected only for"),
        (
            '[[row]]\nname = "x"\nfrom = "krr-st"\nagainst = "y"\n',
            "against: expected the name of a row above it, got 'y'",
        ),
        ('[[variant]]\nname = "x"\nrows = ["y"]\n', "rows: expected names of rows, got y"),
        ('[[variant]]\nname = "x"\n[variant.set]\n"distill.images" = 3\n', "cannot change distill.images"),
        ('[classifiers]\nThird = "c"\n', "classifiers: expected only Other, got Third"),
        ("[expect.Other]\nsize = 0\n", "expect: Other: size: expected a whole number from 1"),
        ("[expect]\nThird = {size = 8}\n", "expect: expected only Other, source, got Third"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "s.toml").write_text(SHARED + ROWS + text)
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "s.toml")


def test_a_network_that_does_not_exist_at_that_size_is_refused_first(place):
    text = FINETUNED + ROWS + WIDER.replace("convnet-8-8", "vgg11")
    with pytest.raises(InputError, match="row scratch, wider: .*vgg11"):
        run(place, text)
    assert not (place / "cells.jsonl").exists()


@pytest.mark.parametrize("name", shipped_studies())
def test_every_row_of_a_shipped_study_passes_a_dry_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    plan = read_plan(find_study(name), folder=".")
    imported = {row.name for row in plan.rows if row.source == "imported"}
    estimate = estimate_study(plan, tmp_path)
    assert {r.row.name for r in estimate.rows} | imported == {row.name for row in plan.rows}
    assert len(plan.rows) >= 5 and any(row.source == "krr-st" for row in plan.rows)
    assert {row.settings.pretrain.lr for row in plan.rows} == {0.1}  # one recipe of pre-training, the published one
    assert estimate.cost > 1e12 and not estimate.notes and not any(tmp_path.iterdir())
    output = "\n".join(estimate.missing)
    for what in (
        "data: ",
        "teacher: ",
        *(f"target {t}: " for t in plan.targets),
        *(f"row {r}: missing" for r in imported),
    ):
        assert what in output
    named = {str(file) for file in (plan.data, *plan.targets.values())}
    assert all(file in plan.layout for file in named)  # every folder is described


def test_the_shipped_studies_of_the_paper_have_its_settings():
    for name, preset, steps in (("cifar100", "cifar100", 4000), ("tinyimagenet", "tinyimagenet", 8000)):
        plan = read_plan(find_study(f"published/{name}.toml"))
        settings = {row.settings for row in plan.rows if row.source == "krr-st"}.pop()
        published = PRESETS[preset]
        assert settings.distill == published.distill and settings.pretrain == published.pretrain
        assert settings.pretrain.steps == steps and settings.finetune == FINETUNE["published"]
    assert {"published/architectures.toml", "published/data-free.toml", "small-data-free.toml"} < set(shipped_studies())


def test_a_dry_run_names_what_is_wrong(place, ssdd_command):
    text = FINETUNED + IMPORTED + ROWS + WIDER
    (place / "study.toml").write_text(text)
    output = ssdd_command("study", place / "study.toml", "--dry-run").stdout
    assert "12 of 14" not in output and "7 of 7 cells to compute" in output
    assert f"missing: row DSA: missing, as {place / 'dsa.safetensors'} does not exist" in output
    assert not (place / "cells.jsonl").exists() and not (place / "work").exists()
    one = next(line for line in output.splitlines() if line.startswith("KRR-ST, wider"))
    assert one.split()[2:7] == ["krr-st", "696", "10", one.split()[5], "4"]
    (place / "study.toml").write_text(text.replace('"other.npz"', '"unlabelled.npz"'))
    np.savez(place / "unlabelled.npz", x_train=np.zeros((9, 8, 8), np.uint8))
    wrong = ssdd_command("study", place / "study.toml", "--dry-run", fails=True)
    assert "target Other: unlabelled: no fine-tuning" in str(wrong.exception) or "labels" in str(wrong.exception)
    (place / "study.toml").write_text(text.replace("convnet-8-8", "vgg11"))
    wrong = ssdd_command("study", place / "study.toml", "--dry-run", fails=True)
    assert "row scratch, wider" in str(wrong.exception)
    (place / "study.toml").write_text(text.replace('"other.npz"', '"gone.npz"'))
    wrong = ssdd_command("study", place / "study.toml", "--dry-run", fails=True)
    assert "[expect] does not give its classes, test, train" in str(wrong.exception)


def test_the_shipped_studies_are_listed_and_found(ssdd_command, tmp_path, monkeypatch):
    output = ssdd_command("study", "--list").stdout
    assert all(name in output for name in shipped_studies())
    monkeypatch.chdir(tmp_path)
    output = ssdd_command("study", "published/cifar100.toml", "--dry-run").stdout
    table = output[output.index("row ") : output.index("cells to compute")].splitlines()[:-1]
    assert "cifar-100-python/" in output and len(table) == 10 and max(map(len, table)) <= 80
    assert find_study("small/cifar100") == find_study("small-cifar100.toml") == shipped_studies()["small-cifar100.toml"]
    wrong = ssdd_command("study", "published/cifar10.toml", fails=True)
    assert "does not exist; the studies of the package are published/" in str(wrong.exception)
    wrong = ssdd_command("study", "small-cifar100.toml", fails=True)
    assert "cifar100.npz" in str(wrong.exception) and "The files of this study" in wrong.stderr
    for text, message in (
        ("preset = 1", "preset: expected a text"),
        ("", "preset: it is missing; expected preset = one of "),
    ):
        (tmp_path / "small-cifar100.toml").write_text(text)  # a file of that name counts
        assert message in str(ssdd_command("study", "small-cifar100.toml", fails=True).exception)


def newer(pairs, file):
    """Write pairs whose storage a later version would know."""
    pairs.save(file)
    tensors, meta = read_safetensors(file)
    meta["storage"] = {"kind": "wavelets", "version": 1}
    save_file(tensors, file, metadata={"ssdd": json.dumps(meta)})


def test_bad_input_is_refused_by_a_dry_run_and_by_a_run(place, few):
    """Each mistake is an error that names the row or the target, before anything is computed."""
    pairs = DistilledSet(torch.rand(4, 1, 8, 8), torch.eye(4), few.preprocessing, target_kind="labels")
    newer(pairs, place / "dsa.safetensors")
    config = ClassifierConfig(model="convnet-4-8", epochs=1, crop_pad=1, flip=False)
    two = dataclasses.replace(few, y_train=few.y_train.clamp(max=1), y_test=few.y_test.clamp(max=1))
    train_classifier(two, config).save(place / "two.safetensors")
    x = few.x_train[:40].numpy()
    labels = np.arange(40) % 4
    np.savez(place / "unlabelled.npz", x_train=x, x_test=x)
    np.savez(place / "untested.npz", x_train=x, y_train=labels, x_test=x[:20], y_test=labels[:20] % 3)
    plain = FINETUNED + ROWS
    wrong = {
        "target Other: unlabelled: .* have no labels": plain.replace("other.npz", "unlabelled.npz"),
        "target Other: untested: .* no test images of class 3": plain.replace("other.npz", "untested.npz"),
        "row scratch, wider: .*vgg11": plain + WIDER.replace("convnet-8-8", "vgg11"),
        "row DSA: .*stored as 'wavelets', version 1; .* install the version": plain + IMPORTED,
        "row random .* trained for another task: it tells 2 classes apart, other has 10": SHARED
        + '[classifiers]\nOther = "two.safetensors"\n[[row]]\nname = "random + teacher"\nfrom = "random"\n',
        "row random .*expected at most 400, the training images, got 10000": plain.replace(
            'images" = 10', 'images" = 10000'
        ),
    }
    for message, text in wrong.items():
        (place / "study.toml").write_text(text)
        plan = read_plan(place / "study.toml")
        with pytest.raises(InputError, match=message):
            estimate_study(plan, place)
        with pytest.raises(InputError, match=message):
            run_study(plan, place)
        assert not (place / "cells.jsonl").exists()
