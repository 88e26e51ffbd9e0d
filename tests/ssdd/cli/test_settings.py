"""Settings on the command line: one flag each, a file of them, the published code's side, and the verb that prints
them."""

import functools
import tomllib
import typing
from typing import Any

import pytest

from ssdd.cli import VERBS, UsageError
from ssdd.config import OFFICIAL, PRESETS, InputError, as_dict, fields, official, plain, preset, with_settings

EVERY = list(fields(preset("digits")))
NEEDS = {"distill.views": ["--distill.real_view=augmented"], "distill.readout_every": ["--distill.held_out=100"]}
"""Settings that stand on another one."""


def printed(output) -> dict[str, Any]:
    """Return STAGE.FIELD -> value from the output of `ssdd settings`."""

    def flat(table, prefix=""):
        for key, value in table.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, tuple(value) if isinstance(value, list) else value

    return dict(flat(tomllib.loads(output.stdout)))


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
    return [(3, 5)] if typing.get_origin(kind) is tuple else ["resnet18"]


def written(key: str, kind: Any, value: str, i: int) -> list[list[str]]:
    """Return the flag written with "=", as two words, or both ways if its kind has few fields.

    Otherwise each way meets every second field of a kind, and every second word of a choice.
    """
    ways = [[f"--{key}={value}"], [f"--{key}", value]]
    same = [
        name for name, other, _ in EVERY if (typing.get_origin(other) or other) == (typing.get_origin(kind) or kind)
    ]
    return ways if len(same) < 4 else [ways[(same.index(key) + i) % 2]]


@pytest.fixture(scope="module")
def printed_with(ssdd_command):
    """printed_with(*arguments): what `ssdd settings digits` prints; each command runs once."""
    return functools.cache(lambda *arguments: printed(ssdd_command("settings", "digits", *arguments)))


@pytest.mark.parametrize("key, kind, value", EVERY, ids=[key for key, _, _ in EVERY])
def test_each_field_of_each_dataclass_is_a_flag_that_changes_it_alone(printed_with, key, kind, value):
    needed = NEEDS.get(key, [])
    before = printed_with(*needed)
    assert others(kind, value)
    for i, other in enumerate(others(kind, value)):
        for flag in written(key, kind, plain(other), i):
            assert printed_with(*needed, *flag) == before | {key: other}


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_printed_is_a_file_of_these_settings(ssdd_command, tmp_path, name):
    shown = ssdd_command("settings", name)
    assert printed(shown) == {key: value for key, _, value in fields(preset(name))}
    assert "# Number of outer steps: updates of X_s and Y_s. Default: 1800. Published: 160000." in shown.stdout
    (tmp_path / "mine.toml").write_text(shown.stdout)
    again = ssdd_command("settings", "digits", "--config", tmp_path / "mine.toml")
    assert again.stdout == shown.stdout
    flag = printed(ssdd_command("settings", "--config", tmp_path / "mine.toml", "--distill.lr=0.5"))
    assert flag == printed(shown) | {"distill.lr": 0.5}


@pytest.mark.parametrize("verb", ["demo", "teacher", "distill", "evaluate", "settings"])
def test_help_shows_every_setting(ssdd_command, verb):
    text = ssdd_command(verb, "--help").stdout
    assert [key for key, _, _ in EVERY if f"--{key} " not in text] == []
    message = " ".join(text.split())
    assert (
        "--distill.steps N Number of outer steps: updates of X_s and Y_s. Default: 1800. Published: 160000." in message
    )
    assert "over the published number of steps, nearly all outer steps (96.7% in simulation)" in message


def test_explicit_settings_override_official(ssdd_command, tmp_path):
    for name in PRESETS:
        shown = printed(ssdd_command("settings", name, "--official"))
        assert shown == {key: value for key, _, value in fields(official(preset(name)))}
        assert OFFICIAL.items() <= shown.items()
    given = ["--distill.support_input=normalised", "--distill.lr=0.5", "--distill.real_view", "plain"]
    result = ssdd_command("settings", "digits", "--official", *given)
    shown = printed(result)
    assert shown["distill.support_input"] == "normalised" and shown["distill.real_view"] == "plain"
    assert shown["distill.lr"] == 0.5
    assert shown["distill.pool_counter"] == "stuck" and shown["distill.teacher_in_loop"] == "recomputed"
    (message,) = result.stderr.splitlines()
    assert "distill.support_input = normalised (the code: raw)" in message and "distill.lr" not in message
    assert "distill.real_view = plain (the code: augmented)" in message and "pool_counter" not in message
    assert ssdd_command("settings", "digits", "--official", "--distill.support_input=raw").stderr == ""
    (tmp_path / "c.yaml").write_text("distill: {pool_counter: reset}")
    result = ssdd_command("settings", "--official", "--config", tmp_path / "c.yaml")
    assert printed(result)["distill.pool_counter"] == "reset" and "(the code: stuck)" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["settings", "--distill.speed=9"],
            "--distill.speed: no setting 'speed' here; there are method, images,",
        ),
        (["distill", "--distill.rate", "9"], "--distill.rate: this setting is called distill.lr since version 0.2"),
        (["settings", "--distill.lr", "x"], "distill.lr: expected a number, got 'x'"),
        (["settings", "--teacher.widths=8-x"], "teacher.widths: expected whole numbers such as 16-32, got '8-x'"),
        (["settings", "--distill.pool_counter=x"], "distill.pool_counter: expected one of reset, stuck, got 'x'"),
        (["settings", "nothing"], "preset: expected one of digits,"),
        (["distill", "--set", "distill.lr"], "--set: expected STAGE.FIELD=VALUE, got 'distill.lr'"),
        (["distill", "--set=distill.speed=1"], "--distill.speed: no setting 'speed' here"),
        (["distill", "--oversrite"], "--oversrite: no such option; did you mean --overwrite?"),
        (["distill", "--distil.lr=1"], "--distil.lr: expected STAGE.FIELD, such as distill.lr; the stages"),
        (["distill", "--share", "all"], "share: expected one of batch, networks, got 'all'"),
        (["demo", "--workers", "0"], "workers: expected a whole number from 1, got '0'"),
        (["distil"], f"expected a verb, one of {', '.join(VERBS)}, got 'distil'; did you mean distill?"),
        (
            ["distill", "--teacher.epoch", "1"],
            "--teacher.epoch: no setting 'epoch' here; did you mean epochs? There are",
        ),
        (["kd", "x", "--teacher.foo=1"], "--teacher.foo: no setting 'foo' here; there are method,"),
        (
            ["pretrain", "x", "--pretrain.weight_decay=1"],
            "--pretrain.weight_decay: no option of this verb; write --weig",
        ),
        (["pretrain", "x", "--distill.steps=1"], "--distill.steps: no option of this verb; nothing in `ssdd pretrain`"),
        (["distill", "--pool-steps=1"], "--pool-steps: no such option; did you mean --distill.pool_steps or"),
        (["train-classifier", "--epochs=1"], "--epochs: no such option; did you mean --classifier.epochs"),
        (
            ["teacher", "-o", "-x"],
            "out: expected a path after --out/-o; one that begins with a dash is written --out=-",
        ),
        (["teacher", "--size"], "size: expected a whole number after --size (`"),
        (["teacher", "-o", ""], "out: expected a path, got ''"),
        (["distill", "-t", ""], "teacher: expected a name or a path, got ''"),
        (["distill", "-d", ""], "data: expected a name or a path, got ''"),
        (["embed"], "missing: --out/-o"),
        (["show"], "missing: ARTIFACT"),
    ],
)
def test_usage_errors_name_the_option_and_what_was_expected(ssdd_command, arguments, message):
    refused = ssdd_command(*arguments, fails=True)
    assert isinstance(refused.exception, UsageError) and str(refused.exception).startswith(message)
    assert "\n" not in str(refused.exception)


def test_the_settings_of_version_0_1_work_and_say_what_to_write(ssdd_command, printed_with):
    old = ssdd_command("settings", "--set", "distill.rate=0.5", "--set=teacher.widths=4-8")
    assert printed(old) == printed_with("--distill.lr=0.5", "--teacher.widths=4-8")
    assert "write --distill.lr=0.5\n" in old.stderr and "write --teacher.widths=4-8\n" in old.stderr


def test_a_refused_combination_names_the_settings_class(ssdd_command):
    refused = ssdd_command("settings", "--distill.networks=99", fails=True)
    assert isinstance(refused.exception, InputError) and "DistillConfig.networks: expected at most pool" in str(
        refused.exception
    )


def test_as_dict_and_flags_agree():
    assert as_dict(with_settings(preset("small"), {"distill.lr": "0.25"}))["distill"]["lr"] == 0.25
