"""The command line through the program's own parser: each verb on real digits, and its errors."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import ssdd
from ssdd.artifact import DistilledSet
from ssdd.cli import readable_errors
from ssdd.cli.options import print_table

FAST = [
    "--quiet",
    "--teacher.epochs=2",
    "--teacher.widths=4-8",
    "--distill.pool_steps=4",
    "--student.model=convnet-4-8",
    "--pretrain.steps=20",
    "--evaluate.labels=5-0",
    "--evaluate.draws=1",
]


@pytest.fixture(scope="module")
def artifact(ssdd_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "run"
    ssdd_command("distill", "-o", folder, "--images", 6, "--steps", 8, *FAST)
    return folder / "distilled.safetensors"


@pytest.mark.parametrize("width, transposed", [(80, True), (200, False)])
def test_no_word_of_a_table_is_cut_on_a_narrow_terminal(width, transposed, monkeypatch, capsys):
    head = ["method", "representation error", *(f"probe, {n} labels per class" for n in (5, 20)), "fine-tuned"]
    body = (
        ["no pre-training", "", "29.8 ± 8.1", "51.5 ± 11.2", "9.1 ± 1.5"],
        ["KRR-ST", "", "24.2 / 14.6", "50.0", "8.6"],
    )
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", str(width)), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    print_table([head, *body])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    text = "\n".join(lines)
    assert (
        all(word in text for row in (head, *body) for word in row if word != head[1]) and "representation" not in text
    )
    assert max(map(len, lines)) <= width and ("no pre-training" in lines[1]) == transposed


def test_distill_writes_the_run(artifact):
    folder = artifact.parent
    names = {
        "distilled.safetensors",
        "teacher.safetensors",
        "contact-sheet.png",
        "images-over-steps.png",
        "loss.png",
        "coverage.png",
        "log.jsonl",
        "run.json",
        "distilled.report.safetensors",
        "report.html",
        "README.md",
        "finished",  # the last checkpoint, for a longer run
    }
    assert {p.name for p in folder.iterdir()} == names
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events[0] == "start" and {"teacher", "pool", "distill", "result"} <= set(events)
    assert len(DistilledSet.load(artifact)) == 6


def test_distill_by_a_method_with_labels_trains_no_teacher(ssdd_command, tmp_path):
    folder = tmp_path / "run"
    ssdd_command("distill", "-o", folder, "--method", "frepo", "-m", 10, "--steps", 8, *FAST)
    assert not (folder / "teacher.safetensors").exists() and not (folder / "coverage.png").exists()
    pairs = DistilledSet.load(folder / "distilled.safetensors")
    assert pairs.method == "frepo" and pairs.target_kind == "labels" and pairs.targets.shape == (10, 10)
    text = ssdd_command("info", folder / "distilled.safetensors").output
    assert "frepo" in text and "labels" in text
    np.savez(tmp_path / "images.npz", x_train=np.zeros((40, 8, 8, 1), np.uint8))
    arguments = ["-d", tmp_path / "images.npz", "-o", tmp_path / "other", "--method", "dm", "-m", 6]
    refused = ssdd_command("distill", *arguments, "-q", fails=True)
    assert "learns from labels" in str(refused.exception) and not (tmp_path / "other").exists()


def test_a_run_directory_is_not_overwritten(ssdd_command, artifact):
    result = ssdd_command("distill", "-o", artifact.parent, "--images", 6, *FAST, fails=True)
    assert isinstance(result.exception, ssdd.InputError) and "--overwrite" in str(result.exception)
    assert artifact.is_file()


def test_overwrite_with_a_mistake_loses_nothing(ssdd_command, artifact):
    for mistake in (["-m", "5000"], ["-t", "missing.safetensors"], ["--representations", "missing.npy"]):
        ssdd_command("distill", "-o", artifact.parent, "--overwrite", *mistake, *FAST, fails=True)
        assert artifact.is_file()


@pytest.mark.parametrize("verb", ["distill", "demo"])
@pytest.mark.parametrize(
    "mistake, named",
    [
        (["--student.model=convnet-4-8-8-8-8"], "5 blocks"),
        (["--teacher.widths=4-8-8-8-8"], "5 blocks"),
        (["--distill.held_out=1291"], "held_out"),
        (["--representations", "r.npy", "--official"], "need the teacher itself"),
    ],
)
def test_a_mistake_is_found_before_there_is_a_folder(ssdd_command, tmp_path, monkeypatch, verb, mistake, named):
    monkeypatch.chdir(tmp_path)
    np.save("r.npy", np.random.default_rng(0).standard_normal((1797, 5)).astype(np.float32))
    result = ssdd_command(verb, "-o", "run", "--images", 6, *FAST, *mistake, fails=True)
    assert isinstance(result.exception, ssdd.InputError) and named in str(result.exception)
    assert [f.name for f in tmp_path.iterdir() if f.name != "cache"] == ["r.npy"]


def test_teacher_then_distill_with_it(ssdd_command, tmp_path):
    ssdd_command("teacher", "-o", tmp_path / "t.safetensors", *FAST)
    ssdd_command("distill", "-o", tmp_path / "run", "-t", tmp_path / "t.safetensors", "-m", 4, "--steps", 4, *FAST)
    assert DistilledSet.load(tmp_path / "run" / "distilled.safetensors").targets.shape == (4, 8)
    ssdd_command(
        "distill", "-o", tmp_path / "code", "-t", tmp_path / "t.safetensors", "-m", 4, "--steps", 4, "--official", *FAST
    )
    assert DistilledSet.load(tmp_path / "code" / "distilled.safetensors").support_input == "raw"
    printed = ssdd_command(
        "distill",
        "-o",
        tmp_path / "but",
        "-t",
        tmp_path / "t.safetensors",
        "-m",
        4,
        "--steps",
        4,
        "--official",
        "--distill.support_input=normalised",
        *FAST,
    ).stderr
    made = DistilledSet.load(tmp_path / "but" / "distilled.safetensors")
    assert (made.support_input, made.config["pool_counter"]) == ("normalised", "stuck")
    assert printed.count("distill.support_input = normalised") == 1


def test_representations_and_npz_need_no_teacher(ssdd_command, tmp_path):
    g = np.random.default_rng(0)
    np.savez(tmp_path / "set.npz", x_train=g.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "r.npy", g.standard_normal((40, 5)).astype(np.float32))
    ssdd_command(
        "distill",
        "-o",
        tmp_path / "run",
        "-d",
        tmp_path / "set.npz",
        "--representations",
        tmp_path / "r.npy",
        "-m",
        4,
        "--steps",
        4,
        *FAST,
    )
    made = DistilledSet.load(tmp_path / "run" / "distilled.safetensors")
    assert made.images.shape == (4, 3, 8, 8) and made.targets.shape == (4, 5)


def test_pretrain_resnet18(ssdd_command, artifact, tmp_path):
    ssdd_command("pretrain", artifact, "--model", "resnet18", "--steps", 2, "-o", tmp_path / "w.safetensors", "-q")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    ssdd.build("resnet18", 1, (8, 8), 2).backbone.load_state_dict(weights)


def test_evaluate(ssdd_command, artifact):
    result = ssdd_command("evaluate", artifact, "-t", artifact.parent / "teacher.safetensors", *FAST)
    assert re.search(r"krr-st \| \d\.\d+ \| ", result.output) and "no pre-training" in result.output
    own = [flag for flag in FAST if not flag.startswith("--pretrain")]
    plain = ssdd_command("evaluate", artifact, *own).output
    assert "representation error" in plain and "pre-training: 20 steps" in plain and "(the artifact's recipe" in plain
    changed = ssdd_command("evaluate", artifact, *own, "--preset", "digits", "--pretrain.steps", 3).output
    assert "pre-training: 3 steps" in changed and "(not the artifact's recipe" in changed


def test_show_and_info(ssdd_command, artifact, tmp_path):
    ssdd_command("show", artifact, "-o", tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").size[0] > 64
    assert json.loads(ssdd_command("info", artifact).output)["images"] == [6, 1, 8, 8]
    assert "ssdd_ext" in json.loads(ssdd_command("info").output)["versions"]


def test_demo(ssdd_command, tmp_path):
    out = tmp_path / "demo"
    result = ssdd_command("demo", "-o", out, "--seeds", 2, "-m", 6, "--steps", 6, "--workers", 1, *FAST)
    assert "k-means + teacher" in result.output
    found = json.loads((out / "results.json").read_text())
    assert len(found["cells"]) == 10 and set(found["comparisons"]) == {
        "KRR-ST against random + teacher",
        "KRR-ST against k-means + teacher",
    }
    assert str(tmp_path) not in (out / "results.json").read_text() + (out / "results.md").read_text()
    for name in (
        "seed-0.safetensors",
        "seed-1.safetensors",
        "contact-sheet.png",
        "images-over-steps.png",
        "loss.png",
        "coverage.png",
        "results.md",
        "log.jsonl",
        "teacher.safetensors",
    ):
        assert (out / name).is_file(), name
    again = ssdd_command("demo", "-o", out, *FAST, fails=True)
    assert "--overwrite" in str(again.exception)


def test_demo_that_diverges_keeps_its_log_and_says_so(ssdd_command, tmp_path):
    out = tmp_path / "demo"
    result = ssdd_command(
        "demo", "-o", out, "--seeds", 1, "-m", 6, "--steps", 60, "--workers", 1, *FAST, "--distill.lr=1e30", fails=True
    )
    assert isinstance(result.exception, ssdd.Diverged) and "distill.lr" in str(result.exception)
    assert "stopped" in (out / "log.jsonl").read_text()


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["demo", "-m", "5000"], "at most 1297"),
        (["demo", "--seeds", "0"], "seeds"),
        (["distill", "--preset", "nothing"], "preset"),
        (["distill", "--distill.speed=9"], "speed"),
        (["distill", "--distill.lr"], "distill.lr"),
        (["distill", "-d", "/no/such/folder"], "data"),
        (["distill", "--steps", "0"], "steps: expected at least 1"),
        (["demo", "--steps", "0"], "steps: expected at least 1"),
        (["distill", "-t", "x.pt"], "teacher"),
        (["distill", "-t", "a.safetensors", "--representations", "b.npy"], "one of the two"),
    ],
)
def test_errors_name_what_is_wrong(ssdd_command, tmp_path, arguments, named):
    result = ssdd_command(*arguments, "-o", tmp_path / "run", "-q", fails=True)
    assert isinstance(result.exception, ssdd.InputError) and named in str(result.exception)


def test_errors_are_one_message_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as stopped, readable_errors():
        raise ssdd.InputError("images: expected [fewer]")
    assert stopped.value.code == 1 and capsys.readouterr().err == "error: images: expected [fewer]\n"
    with pytest.raises(ZeroDivisionError), readable_errors():  # a bug shows its traceback
        _ = 1 / 0


def test_help_of_every_verb(ssdd_command):
    for verb in (
        "demo",
        "teacher",
        "distill",
        "pretrain",
        "evaluate",
        "train-classifier",
        "kd",
        "show",
        "info",
        "study",
        "report",
        "export",
        "import",
        "push",
    ):
        assert verb in ssdd_command("--help").output and len(ssdd_command(verb, "--help").output) > 200
