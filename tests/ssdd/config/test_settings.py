"""Settings: refused values, changes by name, and the switch to the published code's side."""

import dataclasses
import re
import typing
from typing import Any

import pytest

from ssdd.config import (
    PRESETS,
    DistillConfig,
    InputError,
    PretrainConfig,
    TeacherConfig,
    differences,
    fields,
    official,
    preset,
    settings_reference,
    with_settings,
)
from ssdd.models import build


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: DistillConfig(lr=-1.0), "lr"),
        (lambda: DistillConfig(ridge=float("nan")), "ridge"),
        (lambda: DistillConfig(images=0), "images"),
        (lambda: DistillConfig(pool_steps=1), "pool_steps"),
        (lambda: DistillConfig(pool_counter="sometimes"), "pool_counter"),
        (lambda: PretrainConfig(schedule="steps"), "schedule"),
        (lambda: TeacherConfig(widths=()), "widths"),
    ],
)
def test_refused_values_are_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


def test_official_turns_every_departure():
    before = preset("digits")
    after = official(before)
    choices = {"pool_counter", "support_input", "real_view", "teacher_in_loop"}
    changed = {
        f.name
        for f in dataclasses.fields(DistillConfig)
        if getattr(before.distill, f.name) != getattr(after.distill, f.name)
    }
    assert changed == choices
    assert (before.evaluate.random_targets, after.evaluate.random_targets) == ("teacher", "labels")


def test_the_default_is_the_papers_side():
    c = DistillConfig()
    assert (c.pool_counter, c.support_input, c.real_view) == ("reset", "normalised", "plain")


def test_settings_by_name():
    changed = with_settings(
        preset("digits"),
        {
            "distill.lr": "0.03",
            "teacher.widths": "8-16",
            "distill.targets": "fixed",
            "teacher.augment.flip": "1",
        },
    )
    assert changed.distill.lr == 0.03 and changed.teacher.widths == (8, 16)
    assert changed.distill.targets == "fixed" and changed.teacher.augment.flip == 1.0


@pytest.mark.parametrize("key, value", [("distill.speed", "1"), ("distill", "1"), ("lr", "1"), ("distill.steps", "x")])
def test_unknown_settings_are_refused(key, value):
    with pytest.raises(InputError):
        with_settings(preset("digits"), {key: value})


def test_unknown_preset_lists_the_known():
    with pytest.raises(InputError, match="digits"):
        preset("nothing")


@pytest.mark.parametrize(
    "name, size, images, features, lr",
    [
        ("cifar100", 32, 1000, 8192, 1e-4),
        ("tinyimagenet", 64, 2000, 8192, 1e-5),
        ("imagenet64", 64, 1000, 8192, 1e-5),
        ("imagenette", 224, 10, 25088, 1e-3),
    ],
)
def test_the_published_presets(name, size, images, features, lr):
    settings = preset(name)
    d = settings.distill
    assert (d.images, d.lr, d.steps, d.batch) == (images, lr, 160_000, 1024)
    assert (d.pool, d.pool_steps, d.pool_lr, d.pool_momentum, d.pool_weight_decay) == (10, 1000, 0.1, 0.9, 1e-3)
    assert (d.ridge, d.bias, d.weight_decay, d.lr_floor) == (1e-6, 1.0, 0.0, 1e-3)
    assert build(settings.student.model, 3, (size, size), 512).dimension == features
    assert (settings.pretrain.lr, settings.pretrain.schedule) == (0.1, "constant")


def others(kind: Any, value: Any) -> list[Any]:
    """Return other values of a setting's type: for a choice, all of its words."""
    if typing.get_origin(kind) is typing.Literal:
        return [word for word in typing.get_args(kind) if word != value]
    if kind is bool:
        return [not value]
    if kind is int:
        return [value + 1]
    if kind is float:
        return [0.75 if value != 0.75 else 0.5]
    if typing.get_origin(kind) is tuple:
        return [(3, 5)]
    return ["resnet18"]


EVERY = list(fields(preset("digits")))


def documented_departures() -> dict[str, str]:
    """Return the code's side according to the settings' docstrings: STAGE.FIELD -> its word."""
    found = {s.key: re.search(r'"(\w+)" \(code\)', s.sentence) for s in settings_reference()}
    return {key: word[1] for key, word in found.items() if word}


@pytest.mark.parametrize("name", PRESETS)
def test_official_changes_what_is_documented_as_the_codes_side_and_nothing_else(name):
    departures = documented_departures()
    assert len(departures) == 7  # four of the loop, the baseline, and two of distillation without the target's data
    before, after = (dict((k, v) for k, _, v in fields(s)) for s in (preset(name), official(preset(name))))
    assert {k: v for k, v in after.items() if before[k] != v} == departures
    kinds = {key: kind for key, kind, _ in EVERY}
    for key, word in departures.items():  # a choice of two: the paper's side is the default
        assert set(typing.get_args(kinds[key])) == {before[key], word}


def test_a_setting_newer_than_the_stored_ones_counts_only_if_not_default():
    assert differences({"pretrain": {"steps": 8}}, {"pretrain": {"steps": 8, "batch": 256}}) == {}
    assert differences({"pretrain": {"steps": 8}}, {"pretrain": {"batch": 2, "steps": 8}}) == {
        "pretrain.batch": (256, 2)
    }
    assert differences({"pretrain": {"gone": 1}}, {"pretrain": {}}) == {"pretrain.gone": (1, None)}
    assert differences({"evaluate": {"labels": [5]}}, {"evaluate": {"labels": (5,)}}) == {}
    assert differences({"seed": 0}, {"seed": 0, "network": "x"}) == {"network": (None, "x")}
