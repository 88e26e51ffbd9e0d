"""Settings: refused values, changes by name, and the one switch to the published code's side."""

import dataclasses

import pytest
from typer.testing import CliRunner

from ssdd.cli import app
from ssdd.cli.settings import spelled_out
from ssdd.config import DistillConfig, InputError, PretrainConfig, TeacherConfig, official, preset, with_settings
from ssdd.models import build


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


@pytest.mark.parametrize(
    "name, size, images, features, rate",
    [
        ("cifar100", 32, 1000, 8192, 1e-4),
        ("tinyimagenet", 64, 2000, 8192, 1e-5),
        ("imagenet64", 64, 1000, 8192, 1e-5),
        ("imagenette", 224, 10, 25088, 1e-3),
    ],
)
def test_the_published_presets(name, size, images, features, rate):
    settings = preset(name)
    d = settings.distill
    assert (d.images, d.rate, d.steps, d.batch) == (images, rate, 160_000, 1024)
    assert (d.pool, d.pool_steps, d.pool_rate, d.pool_momentum, d.pool_weight_decay) == (10, 1000, 0.1, 0.9, 1e-3)
    assert (d.ridge, d.bias, d.weight_decay, d.rate_floor) == (1e-6, 1.0, 0.0, 1e-3)
    assert build(settings.student.model, 3, (size, size), 512).dimension == features
    assert (settings.pretrain.rate, settings.pretrain.schedule) == (0.1, "constant")


def test_every_setting_is_a_flag():
    assert spelled_out(["distill", "--distill.rate", "0.03", "--teacher.augment.flip=1", "-o", "x"]) == [
        "distill", "--set", "distill.rate=0.03", "--set", "teacher.augment.flip=1", "-o", "x"
    ]  # fmt: skip
    shown = CliRunner().invoke(app, ["settings", "cifar100", "--set", "distill.rate=0.5"]).output.split()
    assert "--distill.rate=0.5" in shown and "--teacher.widths=32-64-128-256" in shown
    changes = dict(flag.removeprefix("--").split("=") for flag in shown)
    assert with_settings(preset("digits"), changes) == dataclasses.replace(
        with_settings(preset("cifar100"), {"distill.rate": "0.5"}), name="digits"
    )
