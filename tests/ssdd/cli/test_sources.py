"""The program's messages on its images and teacher, and the options that resolve ambiguity."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import ssdd

FAST = [
    "--quiet",
    "--distill.pool_steps=4",
    "--distill.pool=1",
    "--student.model=convnet-4-8",
    "--teacher.epochs=1",
    "--teacher.widths=4-8",
    "--pretrain.steps=4",
    "--evaluate.labels=5-0",
    "--evaluate.draws=1",
    "--preset",
    "digits",
]


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes, with one image beside their folders."""
    random = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / "overview.png")
    return tmp_path / "photos"


def resnet(seed):
    """Weights of a ResNet under torchvision's names, eight channels wide."""
    g, state, inside = torch.Generator().manual_seed(seed), {}, 8

    def layer(convolution, norm, outside, inside, side):
        state[f"{convolution}.weight"] = torch.randn(outside, inside, side, side, generator=g) / (inside * side)
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{key}"] = torch.rand(outside, generator=g) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("conv1", "bn1", 8, 3, 7)
    for stage in range(4):
        at, outside = f"layer{stage + 1}.0", 8 << stage
        layer(f"{at}.conv1", f"{at}.bn1", outside, inside, 3)
        layer(f"{at}.conv2", f"{at}.bn2", outside, outside, 3)
        if stage:
            layer(f"{at}.downsample.0", f"{at}.downsample.1", outside, inside, 1)
        inside = outside
    return state


def two_networks(file, first, second):
    state = {f"{prefix}.{key}": value for i, prefix in enumerate((first, second)) for key, value in resnet(i).items()}
    torch.save({"state_dict": state}, file)
    return file


def test_verbs_print_summaries_and_take_options_for_ambiguous_folders(ssdd_command, photos, tmp_path):
    run = ["distill", "-d", photos, "-o", tmp_path / "run", "--images", 4, "--steps", 4, *FAST]
    refused = ssdd_command(*run, fails=True)
    assert isinstance(refused.exception, ssdd.InputError) and "--classes folders" in str(refused.exception)
    assert not (tmp_path / "run").exists()
    output = ssdd_command(*run, "--classes", "folders").stderr
    found = (
        "photos: 24 images of 2 classes (cat, dog), 5 of them (one in five) held out for testing; "
        "1 image beside the class folders left out (overview.png)\n"
    )
    assert output.count(found) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]["classes"] == "folders"
    assert found in ssdd_command("distill", "--resume", tmp_path / "run", *FAST[:1]).stderr
    artifact = tmp_path / "run" / "distilled.safetensors"
    teacher = tmp_path / "t.safetensors"
    assert found in ssdd_command("teacher", "-d", photos, "--classes", "folders", "-o", teacher, *FAST).stderr
    shown = ssdd_command("evaluate", artifact, "-d", photos, "--classes", "none", *FAST)
    assert "photos: 25 images without classes" in shown.stderr
    shown = ssdd_command(
        "demo",
        "-d",
        photos,
        "--classes",
        "folders",
        "-o",
        tmp_path / "demo",
        "-t",
        teacher,
        "--images",
        4,
        "--steps",
        4,
        "--seeds",
        1,
        "--workers",
        1,
        *FAST,
    )
    assert found in shown.stderr
    torch.save(torch.rand(2, 3, 8, 8), tmp_path / "x.pt")
    torch.save(torch.rand(2, 5), tmp_path / "y.pt")
    assert (
        found
        in ssdd_command(
            "import",
            tmp_path / "x.pt",
            tmp_path / "y.pt",
            "-d",
            photos,
            "--classes",
            "folders",
            "-o",
            tmp_path / "i.safetensors",
        ).stderr
    )


def test_the_verbs_say_which_network_of_a_file_is_the_teacher(ssdd_command, photos, tmp_path):
    moco = two_networks(tmp_path / "moco.pth.tar", "encoder_k", "encoder_q")
    dino = two_networks(tmp_path / "dino.ckpt", "student", "teacher")
    common = ["-d", photos, "--classes", "folders", "--images", 4, "--steps", 4, *FAST]
    output = ssdd_command("distill", "-t", moco, "-o", tmp_path / "a", *common).stderr
    assert "moco.pth.tar: ResNet under state_dict.encoder_q. (not its moving average state_dict.encoder_k." in output
    refused = ssdd_command("distill", "-t", dino, "-o", tmp_path / "b", *common, fails=True)
    assert "--teacher-prefix, one of state_dict.student., state_dict.teacher." in str(refused.exception)
    output = ssdd_command("distill", "-t", dino, "--teacher-prefix", "student", "-o", tmp_path / "b", *common).stderr
    assert "dino.ckpt: ResNet under state_dict.student. (as --teacher-prefix says)" in output
    assert json.loads((tmp_path / "b" / "run.json").read_text())["arguments"]["teacher_prefix"] == "student"
    ssdd_command("distill", "--resume", tmp_path / "b", *FAST[:1])
    shown = ssdd_command(
        "evaluate",
        tmp_path / "b" / "distilled.safetensors",
        "-d",
        photos,
        "--classes",
        "folders",
        "-t",
        dino,
        "--teacher-prefix",
        "student",
        *FAST,
    )
    assert "under state_dict.student." in shown.stderr
    shown = ssdd_command(
        "demo",
        "-t",
        dino,
        "--teacher-prefix",
        "teacher",
        "-o",
        tmp_path / "demo",
        "--seeds",
        1,
        "--workers",
        1,
        *common,
    )
    assert "under state_dict.teacher." in shown.stderr
    for verb in ("distill", "demo"):
        refused = ssdd_command(verb, "--teacher-prefix", "student", "-o", tmp_path / "c", *common, fails=True)
        assert "--teacher-prefix: expected it with --teacher" in str(refused.exception)


STUDY = """
preset = "digits"
seeds = 1
[set]
"student.model" = "convnet-4-8"
"pretrain.steps" = 4
"evaluate.labels" = [5, 0]
"evaluate.draws" = 1
"distill.images" = 4
[[row]]
name = "no pre-training"
from = "nothing"
[[row]]
name = "random"
from = "random"
"""


def test_a_study_prints_summaries_and_takes_the_same_options(ssdd_command, photos, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    dino = two_networks(tmp_path / "dino.ckpt", "student", "teacher")
    command = ["study", tmp_path / "study.toml", "-d", photos, "-t", dino]
    refused = ssdd_command(*command, "--teacher-prefix", "student", fails=True)
    assert isinstance(refused.exception, ssdd.InputError) and "--classes folders" in str(refused.exception)
    refused = ssdd_command(*command, "--classes", "folders", fails=True)
    assert "--teacher-prefix, one of state_dict.student., state_dict.teacher." in str(refused.exception)
    shown = ssdd_command(*command, "--classes", "folders", "--teacher-prefix", "student")
    assert "photos: 24 images of 2 classes (cat, dog)" in shown.stderr
    assert "dino.ckpt: ResNet under state_dict.student. (as --teacher-prefix says)" in shown.stderr
    assert "[2/2] random, seed 0, source" in shown.stdout
    other = ['classes = "folders"', 'teacher_prefix = "student"', f'data = "{photos}"', f'teacher = "{dino}"']
    (tmp_path / "study.toml").write_text("\n".join(other) + STUDY)
    again = ssdd_command("study", tmp_path / "study.toml")  # from the file: the same cells, so none is computed
    assert again.stdout == f"Report: {tmp_path / 'report.html'}\n" and "24 images of 2 classes" in again.stderr


def test_evaluate_uses_digits_only_if_the_set_is_from_digits(ssdd_command, photos, tmp_path):
    pairs = ssdd.DistilledSet(torch.rand(2, 3, 8, 8), torch.rand(2, 5), ssdd.Preprocessing((0.5,) * 3, (0.5,) * 3))
    for source, named in (("photos", "'photos'"), ("", "images that it does not name")):
        file = dataclasses.replace(pairs, source=source).save(tmp_path / "a.safetensors")
        refused = ssdd_command("evaluate", file, *FAST, fails=True)
        assert f"distilled from {named}; give the images to measure on with --data" in str(refused.exception)


def test_a_path_may_begin_with_the_home_folder(ssdd_command, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["distill", "-d", "~/photos", "--classes", "folders", "--images", 4, "--steps", 2, *FAST]
    ssdd_command(*command, "-o", "~/a run")
    kept = json.loads((tmp_path / "a run" / "run.json").read_text())["arguments"]
    assert kept["data"] == str(photos) and kept["checkpoint_every"] == 60.0
    refused = ssdd_command(*command, "-o", "~/a run", fails=True)
    assert f"go on with `--resume '{tmp_path}/a run'`, choose" in str(refused.exception)  # as a shell reads it
    refused = ssdd_command("teacher", "-d", "~no one", "-o", tmp_path / "t.safetensors", fails=True)
    assert str(refused.exception).startswith("data: '~no one' does not exist")


def test_a_classifier_and_its_student_read_photos_of_several_sizes(ssdd_command, photos, tmp_path):
    pairs = ssdd.DistilledSet(torch.rand(4, 3, 8, 8), torch.rand(4, 5), ssdd.Preprocessing((0.5,) * 3, (0.5,) * 3))
    file, classifier = pairs.save(tmp_path / "a.safetensors"), tmp_path / "c.safetensors"
    (photos / "overview.png").unlink()
    (photos / "cat" / "broken.jpg").write_bytes(b"broken")
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(photos / "dog" / "wide.png")
    common = ["-d", photos, "--skip-unreadable", "--model", "convnet-4-8", *FAST]
    told = ssdd_command("train-classifier", *common, "--like", file, "-o", classifier, "--classifier.epochs", 1)
    assert "25 images of 2 classes" in told.stderr and "1 unreadable image skipped" in told.stderr
    told = ssdd_command("kd", file, "-t", classifier, *common, "-o", tmp_path / "s.safetensors", "--kd.epochs", 1)
    assert "1 unreadable image skipped" in told.stderr and "test accuracy" in told.stdout


def test_evaluate_measures_one_network_on_several_sets(ssdd_command, photos, tmp_path):
    pairs = ssdd.DistilledSet(torch.rand(4, 3, 8, 8), torch.rand(4, 5), ssdd.Preprocessing((0.5,) * 3, (0.5,) * 3))
    file = pairs.save(tmp_path / "a.safetensors")
    common = ["evaluate", file, "-d", photos, "--classes", "folders", "--finetune.share", 0, *FAST]
    alone = ssdd_command(*common).stdout
    shown = ssdd_command(*common, "--target", f"Same={photos}", "--target", f"Again={photos}")
    first, same, again = shown.stdout.split("\n\n")
    assert first.strip() == alone.strip() and same == "Same:\n" + alone.rstrip() and again == "Again:\n" + alone
    assert shown.stderr.count("24 images of 2 classes") == 3
    refused = ssdd_command(*common, "--target", "photos", fails=True)
    assert "--target: expected NAME=DATA, such as Flowers=photos, got 'photos'" in str(refused.exception)
    refused = ssdd_command(*common, "--target", "Pets=nowhere", fails=True)
    assert "target Pets: data: 'nowhere' does not exist" in str(refused.exception)


def test_targets_are_resized_and_fine_tuned_on(ssdd_command, photos, tmp_path, few):
    """By default the scaled recipe, with a row from scratch; what does not fit is refused before any training."""
    pairs = ssdd.DistilledSet(torch.rand(4, 3, 8, 8), torch.rand(4, 5), ssdd.Preprocessing((0.5,) * 3, (0.5,) * 3))
    file = pairs.save(tmp_path / "a.safetensors")
    x = {f"x_{part}": getattr(few, f"x_{part}")[:80].repeat(1, 2, 2, 1).numpy() for part in ("train", "test")}
    y = {f"y_{part}": getattr(few, f"y_{part}")[:80].numpy() for part in ("train", "test")}
    np.savez(tmp_path / "grey.npz", **x, **y)
    command = ["evaluate", file, "-d", photos, "--classes", "folders", *FAST]
    grey = ["--target", f"Grey={tmp_path / 'grey.npz'}"]
    shown = ssdd_command(*command, *grey, "--finetune.steps", 3)
    assert "resized from 16x16 to 8x8, grey repeated as colour" in shown.stderr
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.stdout.split("Grey:\n")[1].splitlines()]
    assert table[0][-1] == "fine-tuned" and [row[0] for row in table[2:]] == ["no pre-training", "krr-st"]
    assert all(0 <= float(row[-1]) <= 100 for row in table[2:])
    np.savez(tmp_path / "grey.npz", **x, y_train=y["y_train"])
    refused = ssdd_command(*command, *grey, fails=True)
    assert "target Grey: grey: no probe and no fine-tuning, as its test images have no labels" in str(refused.exception)
    assert "fine-tuning: 300 steps (the paper's: --finetune published; none: --finetune.share 0)" in refused.stderr
