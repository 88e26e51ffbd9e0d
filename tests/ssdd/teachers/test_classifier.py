"""Classifiers and students that learn from them: plain formulas, modes, resuming, and what does not fit together."""

import copy
import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ssdd
from ssdd.checkpoint import Checkpoints, Stopped
from ssdd.config import ClassifierConfig, Diverged, InputError, KdConfig, official, preset
from ssdd.data import ImageSet, apply_dsa, crop, draw_crops, draw_dsa
from ssdd.models import build, seeded
from ssdd.teachers import Classifier, check_kd, distil_knowledge, train_classifier

SMALL = ClassifierConfig(model="convnet-8-16", epochs=8, batch=50, crop_pad=1, flip=False)


@pytest.fixture(scope="module")
def classifier(few):
    return train_classifier(few, SMALL)


@pytest.fixture(scope="module")
def pairs(few):
    g = torch.Generator().manual_seed(0)
    images = few.x_train[:11].permute(0, 3, 1, 2).float() / 255
    return ssdd.DistilledSet(images, torch.randn(11, 5, generator=g), few.preprocessing, source="few")


def student(outputs):
    return build("convnet-4-8", 1, (8, 8), outputs)


# --- a classifier -------------------------------------------------------------------------------------------------


def test_it_is_trained_as_written_in_plain_pytorch(few):
    data = ImageSet("a few", few.x_train[:50], few.x_test[:20], torch.arange(50) % 4, torch.arange(20) % 4)
    config = dataclasses.replace(SMALL, epochs=2, batch=20, flip=True)
    events = []
    found = train_classifier(data, config, seed=5, report=events.append)

    model = seeded(lambda: build("convnet-8-16", 1, (8, 8), 4), 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    g = torch.Generator().manual_seed(5)
    pixels = data.x_train.permute(0, 3, 1, 2).float() / 255
    for _ in range(2):
        for rows in torch.randperm(50, generator=g).split(20):  # 20, 20, 10
            x = data.preprocessing.normalise(crop(pixels[rows], 1, draw_crops(len(rows), 1, g)))
            loss = F.cross_entropy(model(x), data.y_train[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for a, b in zip(found.module.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert [e["step"] for e in events] == [3, 6] and events[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_it_learns_and_is_read_back_from_its_file(classifier, few, tmp_path):
    assert classifier.accuracy(few) > 70
    right = classifier.module(few.preprocessing(few.x_test)).argmax(1) == few.y_test
    assert classifier.accuracy(few, batch=7) == pytest.approx(100 * float(right.float().mean()))
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.named(str(tmp_path / "c.safetensors"))
    assert again.key() == classifier.key() and again.about == classifier.about and again.classes == 10
    assert again.about["model"] == "convnet-8-16" and again.about["size"] == [8, 8] and again.about["data"] == "few"


def test_code_that_a_file_names_is_not_run(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("raise SystemExit('this ran')")
    other = dataclasses.replace(classifier, about={**classifier.about, "model": "theirs:network"})
    with pytest.raises(InputError, match=r"c\.safetensors.*'theirs:network', and code that a file names is not run"):
        Classifier.load(other.save("c.safetensors"))


def test_statistics_of_each_batch_are_another_accuracy(classifier, few):
    """The released code's way of testing: it depends on the batches, and leaves the network's statistics alone."""
    before = copy.deepcopy(classifier.module.state_dict())
    whole, one = (classifier.accuracy(few, batch=batch, batch_statistics=True) for batch in (100, 5))
    assert len({whole, one, classifier.accuracy(few)}) > 1
    assert all(torch.equal(value, before[key]) for key, value in classifier.module.state_dict().items())
    model = copy.deepcopy(classifier.module).train()
    right = model(few.preprocessing(few.x_test)).argmax(1) == few.y_test
    assert whole == pytest.approx(100 * float(right.float().mean()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": None}, "y_train: expected labels"),
        ({"y_test": None}, "y_test: expected labels"),
        ({"y_test": torch.zeros(100, dtype=torch.int64)}, "no test images of class 1"),
        ({"y_train": torch.zeros(400).long(), "y_test": torch.zeros(100).long()}, "at least two classes"),
        ({"y_train": torch.full((400,), 5), "y_test": torch.full((100,), 5)}, "at least two classes, got 1"),
    ],
)
def test_sets_without_the_labels_it_needs(few, change, message):
    with pytest.raises(InputError, match=message):
        train_classifier(dataclasses.replace(few, **change), SMALL)
    with pytest.raises(Diverged, match=r"classifier\.lr"):
        train_classifier(few, dataclasses.replace(SMALL, lr=1e20))


def stops_after(folder, stage, steps):
    """Checkpoints of a run that is asked to stop after so many steps."""
    asked = iter(range(steps))
    return Checkpoints(folder, stage, stop=lambda: next(asked, None) is None)


def test_a_stopped_training_goes_on_to_the_same_bits(few, tmp_path):
    whole = train_classifier(few, SMALL, seed=1)
    with pytest.raises(Stopped):
        train_classifier(few, SMALL, seed=1, checkpoints=stops_after(tmp_path, "train-classifier", 9))
    again = train_classifier(few, SMALL, seed=1, checkpoints=Checkpoints(tmp_path, "train-classifier"))
    assert again.key() == whole.key()
    with pytest.raises(InputError, match="of another run"):
        train_classifier(few, SMALL, seed=2, checkpoints=Checkpoints(tmp_path, "train-classifier"))


# --- a student that learns from it --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("given", ["normalised", "raw"])
def test_the_student_is_trained_as_written_in_plain_pytorch(classifier, pairs, mode, given):
    config = KdConfig(epochs=3, batch=4, mode=mode, input=given, lr=1e-2)
    kept = classifier.key()
    events = []

    def pretrain(network):
        assert network.head.out_features == 5
        with torch.no_grad():
            network.backbone.blocks[0].weight.mul_(1.5)

    got = distil_knowledge(classifier, pairs, student, config, pretrain=pretrain, seed=2, report=events.append)
    assert classifier.key() == kept and not classifier.module.training and not got.training

    model = seeded(lambda: student(10), 2)
    first = seeded(lambda: student(5), 2)
    pretrain(first)
    model.backbone.load_state_dict(first.backbone.state_dict())
    teacher = copy.deepcopy(classifier.module).train(mode == "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    g = torch.Generator().manual_seed(2)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * epoch / 3))
        for rows in torch.randperm(11, generator=g).split(4):  # 4, 4, 3
            x = apply_dsa(pairs.images[rows], draw_dsa(g, len(rows)))
            x = classifier.preprocessing.normalise(x) if given == "normalised" else x
            with torch.no_grad():
                soft = F.softmax(teacher(x), 1)
            loss = -(soft * F.log_softmax(model(x), 1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for a, b in zip(got.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert [e["step"] for e in events] == [3, 6, 9]
    assert events[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_the_control_sees_noise_and_starts_at_random(classifier, pairs):
    def pretrain(network):
        raise AssertionError("the control is not pre-trained")

    config = KdConfig(epochs=1, batch=11, images="noise", noise_lr=0.02, lr=7.0)
    got = distil_knowledge(classifier, pairs, student, config, pretrain=pretrain, seed=2)
    model, g = seeded(lambda: student(10), 2).train(), torch.Generator().manual_seed(2)
    torch.randperm(11, generator=g)
    x = torch.randn(11, 1, 8, 8, generator=g)
    with torch.no_grad():
        soft = classifier.module(x).softmax(1)
    F.cross_entropy(model(x), soft).backward()
    torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0).step()
    torch.testing.assert_close(got.head.weight, model.head.weight)


def test_published_values():
    kd = preset("tinyimagenet").kd
    assert (kd.epochs, kd.batch, kd.lr, kd.noise_lr, kd.weight_decay) == (1000, 512, 1e-4, 1e-3, 0.0)
    assert (kd.mode, kd.input) == ("eval", "normalised")
    assert (official(preset("small")).kd.mode, official(preset("small")).kd.input) == ("train", "raw")


def test_a_stopped_student_goes_on_to_the_same_bits(classifier, pairs, tmp_path):
    config, calls = KdConfig(epochs=4, batch=4), []
    whole = distil_knowledge(classifier, pairs, student, config, pretrain=calls.append)
    with pytest.raises(Stopped):
        distil_knowledge(classifier, pairs, student, config, checkpoints=stops_after(tmp_path, "kd", 5))
    again = distil_knowledge(
        classifier, pairs, student, config, pretrain=calls.append, checkpoints=Checkpoints(tmp_path, "kd")
    )
    assert len(calls) == 1, "the backbone of the checkpoint is pre-trained already"
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="kd.mode"):
        other = dataclasses.replace(config, mode="train")
        distil_knowledge(classifier, pairs, student, other, checkpoints=Checkpoints(tmp_path, "kd"))


def test_parts_that_do_not_fit_together(classifier, pairs, few):
    check_kd(classifier, pairs, few)
    nine = dataclasses.replace(few, y_train=few.y_train % 9, y_test=few.y_test % 9)
    with pytest.raises(InputError, match="another task: it tells 10 classes apart, few has 9"):
        check_kd(classifier, pairs, nine)
    with pytest.raises(InputError, match="labels of the test images"):
        check_kd(classifier, pairs, dataclasses.replace(few, y_test=None))
    wide = dataclasses.replace(pairs, images=pairs.images.repeat(1, 1, 1, 2))
    with pytest.raises(InputError, match=r"trained on images of 8x8, the distilled set has 16x8; .* --like"):
        check_kd(classifier, wide, few)
    colour = dataclasses.replace(
        pairs, images=pairs.images.repeat(1, 3, 1, 1), preprocessing=ssdd.Preprocessing((0.5,) * 3, (0.2,) * 3)
    )
    with pytest.raises(InputError, match="images of 1 channels, the distilled set has 3"):
        check_kd(classifier, colour, few)
    own = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9)), few.preprocessing, 10)
    with pytest.raises(InputError, match=r"expected scores \[2, 10\] for two images, got \[2, 9\]"):
        check_kd(own, pairs, few)


# --- the two verbs ------------------------------------------------------------------------------------------------


def test_the_verbs(ssdd_command, few, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = {f"x_{part}": getattr(few, f"x_{part}").repeat(1, 2, 2, 1).numpy() for part in ("train", "test")}
    np.savez("few.npz", **x, y_train=few.y_train, y_test=few.y_test)
    pairs.save("pairs.safetensors")
    fast = ["-q", "--student.model", "convnet-4-8", "--pretrain.steps", 5, "--kd.epochs", 3]
    teach = ["train-classifier", "-d", "few.npz", "--model", "convnet-8-16", "--classifier.epochs", 2, "-q"]
    shown = ssdd_command(*teach, "--like", "pairs.safetensors", "-o", "c.safetensors")
    assert "resized from 16x16 to 8x8" in shown.stderr
    assert (
        "convnet-8-16, 10 classes, test accuracy" in shown.stdout and not (tmp_path / "c.safetensors.training").exists()
    )
    kd = ["kd", "pairs.safetensors", "-t", "c.safetensors", "-d", "few.npz", *fast]
    shown = ssdd_command(*kd, "-o", "s.safetensors").stdout
    about = Classifier.load("s.safetensors").about
    assert f"test accuracy {about['accuracy']:.1f}% (teacher {about['teacher_accuracy']:.1f}%)" in shown
    assert about["model"] == "convnet-4-8" and about["kd"]["mode"] == "eval" and about["source"] == "few"
    code = ssdd_command(*kd, "--official", "-o", "code.safetensors")
    assert "with the statistics of each batch" in code.stdout
    recipe = Classifier.load("code.safetensors").about["kd"]
    assert (recipe["mode"], recipe["input"], recipe["epochs"]) == ("train", "raw", 3)
    for command, message in (
        ([*kd, "-o", "s.safetensors"], "exists; choose another name"),
        ([*kd], "--out, --resume: expected one of the two"),
        ([*kd, "-o", "s.pt"], "ends in .safetensors"),
        (["kd", "-t", "c.safetensors", "-d", "few.npz", "-o", "n.safetensors"], "artifact: expected it"),
        ([*kd, "--model", "vgg11", "-o", "n.safetensors"], "at least 32x32, got 8x8"),
        ([*kd[:3], "pairs.safetensors", *kd[4:], "-o", "n.safetensors"], "expected a classifier written by"),
        ([*teach, "--resume", "n.safetensors"], "n.safetensors.training does not exist"),
    ):
        assert message in str(ssdd_command(*command, fails=True).exception), command
    assert not (tmp_path / "n.safetensors.training").exists()


@pytest.mark.parametrize("stage, steps", [("pretrain", 3), ("kd", 5 + 7)])
def test_a_stopped_verb_goes_on_with_resume_alone(ssdd_command, few, pairs, tmp_path, monkeypatch, stage, steps):
    monkeypatch.chdir(tmp_path)
    np.savez("few.npz", **{k: getattr(few, k) for k in ("x_train", "y_train", "x_test", "y_test")})
    pairs.save("pairs.safetensors")
    Classifier.save(train_classifier(few, SMALL), "c.safetensors")
    kd = ["kd", "pairs.safetensors", "-t", "c.safetensors", "-d", "few.npz", "-q", "--pretrain.steps", 5]
    kd += ["--kd.epochs", 9, "--kd.batch", 4, "--model", "convnet-4-8", "--seed", 3]
    ssdd_command(*kd, "-o", "whole.safetensors")
    due = Checkpoints.due
    asked = iter(range(steps))
    monkeypatch.setattr(Checkpoints, "due", lambda self: next(asked, None) is None)
    monkeypatch.setattr(Checkpoints, "save", lambda self, *a, save=Checkpoints.save: save(self, a[0], a[1], True))
    stopped = ssdd_command(*kd, "-o", "s.safetensors", fails=True).exception
    assert isinstance(stopped, Stopped) and "Go on with: ssdd kd --resume s.safetensors" in str(stopped)
    monkeypatch.undo()
    assert Checkpoints.due is due
    monkeypatch.chdir(tmp_path / "s.safetensors.training")
    assert [file.name.split("-")[0] for file in Path("checkpoints").iterdir()] == [stage]
    other = ssdd_command("kd", "--resume", tmp_path / "s.safetensors", "-q", "--kd.epochs", 2, fails=True).exception
    assert f"{stage}-" in str(other) and "is of another run: kd.epochs = 9 there, 2 here" in str(other)
    ssdd_command("kd", "--resume", tmp_path / "s.safetensors", "-q")
    whole, again = (Classifier.load(tmp_path / f"{name}.safetensors") for name in ("whole", "s"))
    assert whole.key() == again.key() and json.dumps(whole.about) == json.dumps(again.about)


def test_ctrl_c_while_a_classifier_is_measured(ssdd_command, few, tmp_path, monkeypatch):
    np.savez(tmp_path / "few.npz", **{k: getattr(few, k) for k in ("x_train", "y_train", "x_test", "y_test")})
    monkeypatch.setattr(Classifier, "accuracy", lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
    file = tmp_path / "c.safetensors"
    teach = ["train-classifier", "-d", tmp_path / "few.npz", "--model", "convnet-4", "--classifier.epochs", 1, "-q"]
    with pytest.raises(KeyboardInterrupt, match=f"stopped. Go on with: ssdd train-classifier --resume {file}"):
        ssdd_command(*teach, "-o", file)
    assert not file.exists()
    monkeypatch.undo()
    ssdd_command("train-classifier", "--resume", file, "-q")
    assert file.is_file()
