"""Settings: refused values, changes by name, and the one switch to the published code's side."""

import dataclasses

import pytest

from ssdd.config import DistillConfig, InputError, PretrainConfig, TeacherConfig, official, preset, with_settings


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: DistillConfig(rate=-1.0), "rate"),
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
            "distill.rate": "0.03",
            "teacher.widths": "8-16",
            "distill.targets": "fixed",
            "teacher.augment.flip": "1",
        },
    )
    assert changed.distill.rate == 0.03 and changed.teacher.widths == (8, 16)
    assert changed.distill.targets == "fixed" and changed.teacher.augment.flip == 1.0


@pytest.mark.parametrize(
    "key, value", [("distill.speed", "1"), ("distill", "1"), ("rate", "1"), ("distill.steps", "x")]
)
def test_unknown_settings_are_refused(key, value):
    with pytest.raises(InputError):
        with_settings(preset("digits"), {key: value})


def test_unknown_preset_lists_the_known():
    with pytest.raises(InputError, match="digits"):
        preset("nothing")
