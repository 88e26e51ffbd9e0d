"""The demonstration is a study: its rows, and that the study's code computes them."""

import dataclasses
import pickle
import threading

import pytest
import torch

from ssdd.artifact import wait_for_lock
from ssdd.config import InputError
from ssdd.evaluation import evaluate
from ssdd.models import student
from ssdd.selection import random_subset
from ssdd.studies import Demonstration, baseline
from ssdd.studies.fill import fill_unit
from ssdd.teachers import Representations

ROWS = ["no pre-training", "random + teacher", "k-means + teacher", "KRR-ST", "teacher"]


@pytest.fixture
def settings(small):
    quick = dataclasses.replace(small.distill, steps=4, pool_steps=4, log_every=4)
    return dataclasses.replace(
        small,
        distill=quick,
        pretrain=dataclasses.replace(small.pretrain, steps=10),
        teacher=dataclasses.replace(small.teacher, epochs=1),
    )


def names(what):
    return [row.name for row in what.plan().rows]


def test_rows_settings_and_seeds(few, settings, teacher, representations):
    what = Demonstration(few, settings, 3, teacher)
    assert names(what) == ROWS
    assert all(row.settings == settings and row.seeds == 3 for row in what.plan().rows)
    labels = dataclasses.replace(settings, evaluate=dataclasses.replace(settings.evaluate, random_targets="labels"))
    assert names(Demonstration(few, labels)) == ["no pre-training", "random + labels", *ROWS[2:]]
    without_test = Representations(representations.train, None)
    assert names(Demonstration(few, settings, representations=without_test)) == ROWS[:-1]


def test_what_does_not_fit_together_is_refused_at_once(few, settings, teacher, representations):
    def changed(**changes):
        return dataclasses.replace(settings, distill=dataclasses.replace(settings.distill, **changes))

    with pytest.raises(InputError, match="seeds: expected a whole number from 1"):
        Demonstration(few, settings, 0)
    with pytest.raises(InputError, match="teacher, representations: expected one of the two"):
        Demonstration(few, settings, 1, teacher, representations)
    with pytest.raises(InputError, match="steps: expected at least 1"):
        Demonstration(few, changed(steps=0))
    with pytest.raises(InputError, match="images: expected at most 400"):
        Demonstration(few, changed(images=401))
    with pytest.raises(InputError, match="need the teacher itself"):
        Demonstration(few, changed(real_view="augmented"), representations=representations)


@pytest.mark.parametrize("targets", ["teacher", "labels"])
def test_a_cell_equals_evaluate_of_the_selection(few, settings, teacher, representations, tmp_path, targets):
    settings = dataclasses.replace(settings, evaluate=dataclasses.replace(settings.evaluate, random_targets=targets))
    what = Demonstration(few, settings, 1, teacher)
    study = what.fill(what.teach(tmp_path), tmp_path, workers=1)
    found = study.cells.read()
    assert len(found) == 5 and (tmp_path / "cells.jsonl").is_file()
    assert pickle.loads(pickle.dumps(study)).cells.read() == found  # worker processes get it (test_fill.py)
    cell = found[f"random + {targets}", 0, "source"]
    rows = random_subset(len(few.x_train), settings.distill.images, 0)
    pairs = baseline(few, rows, representations.train, method="random", seed=0, targets=targets)
    make = lambda outputs: student(settings.student, 1, (8, 8), outputs)  # noqa: E731
    expected = evaluate(pairs, few, representations.test, make, settings)
    assert cell["error"] == expected.error and cell["probes"] == expected.probes
    assert (cell["error"] is None) == (targets == "labels")
    assert cell["settings"].get("targets", "teacher") == targets
    assert found["teacher", 0, "source"]["error"] == 0


def test_a_teacher_is_trained_and_kept_if_none_is_given(few, settings, tmp_path):
    pair = Demonstration(few, settings, 1).teach(tmp_path)
    teacher, representations = pickle.loads(pickle.dumps(pair))  # as worker processes get it
    assert teacher is not None and representations.test.shape == (100, 16)
    assert (tmp_path / "teacher.safetensors").is_file()


def test_representations_need_no_teacher(few, settings, representations, tmp_path):
    what = Demonstration(few, settings, 1, representations=representations)
    study = what.fill(what.teach(tmp_path), tmp_path, workers=1)
    assert len(study.cells.read()) == 5 and not (tmp_path / "teacher.safetensors").exists()
    other = dataclasses.replace(what, representations=Representations(representations.train + 1, representations.test))
    assert torch.equal(other.teach(tmp_path)[1].train, representations.train + 1)
    with pytest.raises(InputError, match="teacher: .* there"):  # cells of another teacher are not used
        other.fill(other.teach(tmp_path), tmp_path, workers=1)


def test_a_unit_of_another_process_is_awaited_and_not_computed_again(few, settings, teacher, tmp_path):
    what = Demonstration(few, settings, 1, teacher)
    study = what.fill(what.teach(tmp_path), tmp_path, workers=1)
    study.cells.file.unlink()  # there is no cell, and this process pretends to compute one
    row, events = what.plan().rows[0], []
    late = threading.Thread(target=fill_unit, args=(study, row, 0, ["source"], events.append))
    with wait_for_lock(study.work / "no-pre-training.seed-0.lock"):
        late.start()
        late.join(0.5)
        assert late.is_alive() and not events
        kept = study.cells.append(row, 0, "source", {"error": None, "probes": {"features/0": 12.5}})
    late.join(60)
    assert events == [{"event": "study-cell", "cell": kept}] and len(study.cells.read()) == 1
