"""Sets that allow no probe: a message says so once, before the work, which then continues with the representation
error."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
import torch

import ssdd
from ssdd.cli import run as run_command
from ssdd.config import FinetuneConfig, InputError
from ssdd.data import ImageSet
from ssdd.evaluation import Cell, evaluate, evaluate_teacher, finetune, measure, why_no_probe
from ssdd.models import seeded
from ssdd.selection import random_subset
from ssdd.studies import baseline

FAST = [
    "--quiet",
    *(
        f"--{change}"
        for change in (
            "teacher.epochs=1",
            "teacher.widths=4-8",
            "student.model=convnet-4-8",
            "distill.pool=1",
            "distill.pool_steps=2",
            "pretrain.steps=2",
            "evaluate.labels=5-0",
            "evaluate.draws=1",
            "finetune.share=0.5",
            "finetune.steps=2",
        )
    ),
]


def labelled(few, train, test):
    return ImageSet("some", few.x_train, few.x_test, train, test)


@pytest.fixture(
    params=["one class", "one class, the second lost", "no labels", "test without", "training without", "others"]
)
def unfit(request, few):
    """A set that allows no probe, and the message about it."""
    one, two = torch.ones(400, dtype=torch.int64), torch.arange(100) % 2
    return {
        "one class": (labelled(few, one, one[:100]), "some: no probe and no fine-tuning, as its training"),
        "one class, the second lost": (labelled(few, one, two), "training images are of 1 class"),
        "no labels": (labelled(few, None, None), "its images have no labels"),
        "test without": (labelled(few, few.y_train, None), "its test images have no labels"),
        "others": (labelled(few, few.y_train % 2, two + 2), "no test image is of a class of the training images"),
        "training without": (labelled(few, None, two), "its training images have no labels"),
    }[request.param]


def test_what_cannot_be_probed_is_measured_by_its_error(few, unfit, make, small, representations):
    data, message = unfit
    assert message in why_no_probe(data) and why_no_probe(few) == ""
    settings = dataclasses.replace(small, finetune=FinetuneConfig(share=0.5, steps=2))
    pairs = baseline(few, random_subset(400, 40, 0), representations.train, method="random", seed=0)
    cell = evaluate(pairs, data, representations.test, make, settings)
    assert 0 < cell.error < 2 and cell.probes == {} and cell.finetuned is None
    assert evaluate_teacher(representations.train, representations.test, data, settings).probes == {}
    network, both = seeded(lambda: make(16), 0).eval(), [Cell("x", 0), Cell("x", 0)]
    for measured, on in zip(both, (few, data), strict=True):
        measure(network, few.preprocessing, on, settings, measured)
    assert both[0].probes and both[0].finetuned is not None and both[1].finetuned is None
    with pytest.raises(InputError, match="no probe and no fine-tuning"):
        finetune(network, few.preprocessing, data, settings.finetune)


@pytest.fixture
def one_class(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez("photos.npz", x_train=x, y_train=np.zeros(40, np.int64))
    return tmp_path


def test_every_verb_warns_once_and_continues(one_class):
    def run(*arguments):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            run_command([*arguments, *FAST])
        output = printed.getvalue()
        assert output.count("no probe") == 1 and "photos" in output
        message, done = output.find("no probe"), output.find("numbers per image")
        assert (done < 0) == (arguments[0] != "teacher") and (done < 0 or message < done), output

    run("teacher", "-d", "photos.npz", "-o", "t.safetensors")
    run(
        "demo",
        "-d",
        "photos.npz",
        "-t",
        "t.safetensors",
        "-o",
        "demo",
        "--seeds",
        "1",
        "--workers",
        "1",
        "-m",
        "4",
        "--steps",
        "2",
    )
    assert "KRR-ST" in (one_class / "demo" / "results.md").read_text()
    assert '"no probe' not in (one_class / "demo" / "results.json").read_text()
    run("evaluate", "demo/seed-0.safetensors", "-d", "photos.npz", "-t", "t.safetensors")


def test_a_study_warns_before_its_cells(one_class, few, teacher):
    file = one_class / "few.npz"
    np.savez(file, x_train=few.x_train[:50], y_train=few.y_train[:50], x_test=few.x_test[:9], y_test=few.y_test[:9])
    teacher.save(one_class / "t.safetensors")
    (one_class / "study.toml").write_text(
        'preset = "digits"\nseeds = 1\ndata = "few.npz"\nteacher = "t.safetensors"\n[targets]\nphotos = "photos.npz"\n'
        '[[row]]\nname = "none"\nfrom = "nothing"\n'
    )
    events = []
    ssdd.run_study(ssdd.read_plan(one_class / "study.toml"), one_class, report=events.append)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "warning" and kinds.count("warning") == 1 and kinds.count("study") == 2
    assert events[0]["message"].startswith("photos: no probe")
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
        run_command(["study", str(one_class / "study.toml")])
    assert printed.getvalue().count("warning: photos: no probe") == 1
