"""Settings that an earlier version stored are read under today's names, in every kind of file."""

import json

import pytest
import torch
from safetensors import safe_open

from ssdd.artifact import DistilledSet, Preprocessing
from ssdd.config import PRESETS, Settings, as_dict, current_name, current_names, differences, from_dict, preset
from ssdd.config.stored import RENAMED
from ssdd.studies import read_cells, read_plan
from ssdd.teachers import Teacher

COMMITTED = ["cifar10", "cifar10/selection", "teachers"]


def old_names(settings, stage=""):
    """Return settings under the names of version 0.1."""
    back = {new: old.rpartition(".")[2] for old, new in RENAMED.items()}
    return {
        back.get(path, key): old_names(value, path) if isinstance(value, dict) else value
        for key, value in settings.items()
        for path in [f"{stage}.{key}" if stage else key]
    }


@pytest.mark.parametrize("name", PRESETS)
def test_settings_under_their_old_names_are_the_same_settings(name):
    stored = json.loads(json.dumps(old_names(as_dict(preset(name)))))
    assert "rate" in stored["distill"] and "near" in stored["distill"] and "follow" in stored["teacher"]
    assert from_dict(Settings(""), current_names(stored)) == preset(name)
    assert differences(stored, as_dict(preset(name))) == {}
    stored["distill"]["smooth"] = 0.5
    assert differences(stored, as_dict(preset(name))) == {"distill.tv_weight": (0.5, 0.0)}


def test_what_is_no_setting_keeps_its_name():
    kept = {"seed": 0, "rate": 3, "network": {"rate": 1}}
    assert current_names(kept) == kept
    assert current_names({"rate": 0.1, "steps": 2}, "distill") == {"lr": 0.1, "steps": 2}


def test_every_new_name_is_a_setting():
    known = as_dict(Settings(""))
    for old, new in RENAMED.items():
        stage, _, field = new.partition(".")
        assert field in known[stage] and old.partition(".")[2] not in known[stage] and current_name(old) == new


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_files_hold_old_names_and_load(root, name):
    """The tests of the studies check that no committed cell is planned again."""
    folder = root / "docs" / "results" / name
    cells = read_cells(folder / "cells.jsonl")
    assert any("rate" in cell["settings"]["pretrain"] for cell in cells.values() if "pretrain" in cell["settings"])
    rows = {row.name: row for row in read_plan(folder / "study.toml").rows}
    for (row, _, _), cell in cells.items():
        assert differences(cell["settings"], rows[row].relevant) == {}
    for file in folder.glob("*.safetensors"):
        assert Teacher.load(file).about["widths"] == [32, 64, 128, 256]


def test_a_study_file_may_use_the_old_names(tmp_path):
    text = 'preset = "digits"\n[[row]]\nname = "x"\nfrom = "krr-st"\n[row.set]\n"distill.smooth" = 0.25\n'
    (tmp_path / "s.toml").write_text(text)
    assert read_plan(tmp_path / "s.toml").rows[0].settings.distill.tv_weight == 0.25


def test_an_old_artifact_shows_todays_names(tmp_path):
    file = tmp_path / "a.safetensors"
    pre = preset("digits")
    pairs = DistilledSet(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3), Preprocessing((0.5,), (0.5,)))
    pairs.config.update(old_names(as_dict(pre.distill), "distill"))
    pairs.save(file)
    with safe_open(file, framework="pt") as kept:
        assert '"rate"' in kept.metadata()["ssdd"]
    assert DistilledSet.load(file).config == json.loads(json.dumps(as_dict(pre.distill)))
