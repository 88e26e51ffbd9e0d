"""Runs of the program that are killed and resumed give the same bits as a run that never stopped."""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ssdd.artifact import read_safetensors
from ssdd.checkpoint import Checkpoints
from ssdd.cli.resume import Run, say_how_to_go_on, stop_at_once
from ssdd.config import InputError

SETTINGS = [
    "--teacher.epochs=6",
    "--teacher.widths=4-8",
    "--distill.pool_steps=12",
    "--student.model=convnet-4-8",
    "--distill.pool=3",
    "--distill.log_every=7",
    "-m",
    "6",
    "--steps",
    "60",
]
STEPS = 60


# Each program is a process of its own, forked from a server that has only imported ssdd. A kill has the same effect,
# and no test waits until torch is loaded.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["ssdd.cli", "ssdd.report", "ssdd.studies", "torch._dynamo", "sklearn.datasets", "matplotlib.figure", "PIL.Image"]
)
PROGRAM = """
import os, sys, torch
torch.set_num_threads(1)
os.environ["XDG_CACHE_HOME"] = {cache!r}
sys.argv = ["ssdd", *{arguments!r}]
output = os.open({output!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(output, 1), os.dup2(output, 2)
from ssdd.cli import main
main()
"""


class Program:
    """``ssdd`` with these arguments, started; ``folder`` has its cache and its output."""

    def __init__(self, folder, *arguments):
        self.output = folder / "output"
        code = PROGRAM.format(cache=str(folder / "cache"), arguments=list(map(str, arguments)), output=str(self.output))
        self.process = SERVER.Process(target=exec, args=(code, {}))
        self.process.start()

    def end(self, code):
        self.process.join(100)
        output = self.output.read_text()
        assert self.process.exitcode == code, (self.process.exitcode, output)
        return output


def finish(folder, *arguments, code=0):
    return Program(folder, *arguments).end(code)


def newest(run: Path, stage: str) -> int:
    files = Checkpoints(run / "checkpoints", stage).files()
    return int(files[-1].stem.split("-")[1]) if files else -1


def kill_at(folder, run, stage, step, *arguments, number=signal.SIGKILL):
    """Start the program, send it a signal when the checkpoint of ``step`` exists, and return its output."""
    program = Program(folder, *arguments, "--checkpoint-every", 0)
    end = time.monotonic() + 100
    while newest(run, stage) < step:
        assert program.process.is_alive(), program.end(0)
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(program.process.pid, number)
    return program.end(-signal.SIGKILL if number == signal.SIGKILL else 130)


def product(run):
    tensors, meta = read_safetensors(run / "distilled.safetensors")
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = {e["step"]: e["loss"] for e in events if e["event"] == "distill"}
    return tensors, meta["metrics"], losses


def same_product(a, b):
    (ta, ma, la), (tb, mb, lb) = product(a), product(b)
    assert all(torch.equal(ta[k], tb[k]) for k in ("images", "targets")) and ma == mb and la == lb
    assert (a / "teacher.safetensors").read_bytes() == (b / "teacher.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, "distill", "-q", "-o", folder / "run", *SETTINGS)
    return folder / "run"


def test_killed_at_random_steps_and_with_its_newest_checkpoint_torn(whole, tmp_path):
    run, draw = tmp_path / "run", random.Random()  # different moments at each run of this test: every moment must work
    steps = sorted(draw.sample(range(1, STEPS - 3), 2))
    print("killed at", steps)  # shown if the test fails
    resume = ["distill", "--resume", run]
    kill_at(tmp_path, run, "teacher", draw.randint(1, 25), "distill", "-o", run, *SETTINGS)
    kill_at(tmp_path, run, "distill", steps[0], *resume)
    kill_at(tmp_path, run, "distill", steps[1], *resume)
    torn = Checkpoints(run / "checkpoints").files()[-1]
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    output = finish(tmp_path, *resume)
    assert torn.name in output and "the one before it" in output
    same_product(whole, run)
    assert not (run / "checkpoints").exists()
    assert "this run is finished" in finish(tmp_path, *resume)


def test_a_finished_run_is_lengthened(whole, tmp_path):
    """It goes on from its last step; a kill on the way does not change the bits."""
    more = ["--steps", STEPS + 20]
    for name in ("once", "killed"):
        shutil.copytree(whole, tmp_path / name)
    output = finish(tmp_path, "distill", "--resume", tmp_path / "once", *more)
    assert f"distill.steps was {STEPS} and is {STEPS + 20}: the run goes on after step {STEPS}" in output
    assert "bits are not those" in output
    killed = tmp_path / "killed"
    kill_at(tmp_path, killed, "distill", STEPS + 8, "distill", "--resume", killed, *more)
    output = finish(tmp_path, "distill", "--resume", killed)  # the new length is stored
    assert "bits are not" not in output
    same_product(tmp_path / "once", killed)
    tensors, metrics, losses = product(killed)
    assert metrics["steps"] == STEPS + 20 and max(losses) == STEPS + 20
    assert product(whole)[2].items() <= losses.items() and not torch.equal(
        tensors["images"], product(whole)[0]["images"]
    )
    assert "finished" in finish(tmp_path, "distill", "--resume", killed, "--steps", STEPS)  # no shorter
    shutil.rmtree(killed / "finished")
    refused = finish(tmp_path, "distill", "--resume", killed, "--steps", 200, code=1)
    assert "its last checkpoint was not kept" in refused


def test_a_killed_demonstration_continues(tmp_path):
    settings = [*SETTINGS[:-1], 8, "--seeds", 1, "--workers", 1, "-q"]
    finish(tmp_path, "demo", "-o", tmp_path / "whole", *settings)
    run = tmp_path / "run"
    program, end = Program(tmp_path, "demo", "-o", run, *settings), time.monotonic() + 100
    while not (run / "cells.jsonl").is_file() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(program.process.pid, signal.SIGKILL)
    program.end(-signal.SIGKILL)
    again = finish(tmp_path, "demo", "-o", run, *settings, code=1)
    assert f"go on with `--resume {run}`" in again
    before = (run / "teacher.safetensors").stat().st_mtime_ns
    if not torch.cuda.is_available():
        refused = finish(tmp_path, "demo", "--resume", run, "--device", "cuda", code=1)
        assert "device: got 'cuda', but torch sees no CUDA device here" in refused
    assert Run.read(run, "demo.json").arguments["device"] == "cpu"
    finish(tmp_path, "demo", "--resume", run, "-q", "--workers", 1, "--device", "cpu")
    assert (run / "teacher.safetensors").stat().st_mtime_ns == before
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "whole", run))
    assert one["cells"] == two["cells"] and one["pool"] == two["pool"]
    one, two = (read_safetensors(folder / "seed-0.safetensors")[0] for folder in (tmp_path / "whole", run))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert "finished" in finish(tmp_path, "demo", "--resume", run)


def test_ctrl_c_and_sigterm_finish_the_step_and_say_how_to_resume(whole, tmp_path):
    run = tmp_path / "run"
    output = kill_at(tmp_path, run, "distill", 5, "distill", "-o", run, *SETTINGS, number=signal.SIGINT)
    assert "stopped after step" in output and f"ssdd distill --resume {run}" in output and "Traceback" not in output
    refused = finish(tmp_path, "distill", "--resume", run, "--steps", 2, code=1)
    assert "distill.steps: " in refused and "steps of this run are done already" in refused
    kill_at(tmp_path, run, "distill", 30, "distill", "--resume", run, number=signal.SIGTERM)
    refused = finish(tmp_path, "distill", "--resume", run, "--distill.lr=0.5", code=1)
    assert "distill.lr = 0.01 there, 0.5 here" in refused
    refused = finish(tmp_path, "distill", "--resume", run, "--seed", 4, code=1)
    assert "seed = 0 there, 4 here" in refused
    finish(tmp_path, "distill", "--resume", run)
    same_product(whole, run)


def test_what_has_no_steps_is_ended_at_once_in_words():
    before = signal.getsignal(signal.SIGTERM)
    for how, message in ((lambda: "The same command goes on", "stopped. The same command goes on"), (str, "stopped")):
        with pytest.raises(KeyboardInterrupt, match=f"^{message}$"), stop_at_once(how):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal comes first")
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_at_once_in_one_folder(whole, tmp_path):
    """The second run is refused and changes nothing. The first one, stopped meanwhile, resumes to the same bits."""
    run, second = tmp_path / "run", tmp_path / "second"
    second.mkdir()
    program = Program(tmp_path, "distill", "-o", run, *SETTINGS, "--checkpoint-every", 0)
    try:
        end = time.monotonic() + 100
        while newest(run, "distill") < 5:
            assert program.process.is_alive() and time.monotonic() < end
            time.sleep(0.002)
        os.kill(program.process.pid, signal.SIGSTOP)
        while Path(f"/proc/{program.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.002)
        before = sorted((f.name, f.stat().st_size) for f in run.rglob("*"))
        for arguments in (["--resume", run], ["-o", run, "--overwrite", *SETTINGS]):
            output = finish(second, "distill", *arguments, code=1)
            assert f"{run}: another process is writing here" in output and "Traceback" not in output, output
        assert sorted((f.name, f.stat().st_size) for f in run.rglob("*")) == before
    finally:
        os.kill(program.process.pid, signal.SIGCONT)
    program.end(0)
    same_product(whole, run)


def test_a_disk_that_fills_loses_nothing(whole, tmp_path):
    """The disk becomes full half-way: the run ends, keeps its last good checkpoint, and resumes when there is room."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("NO MOUNT FOR THIS USER: a full disk was tried in test_checkpoint.py only, by a file size limit")
    run, filler = small / "run", small / "filler"
    resume = ("distill", "--resume", run, "--checkpoint-every", 0)
    try:
        kill_at(tmp_path, run, "distill", 20, "distill", "-o", run, *SETTINGS, number=signal.SIGINT)
        before = newest(run, "distill")
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while os.statvfs(small).f_bavail * os.statvfs(small).f_frsize > 2 << 20:
                file.write(b"\0" * 4096)
            program, end = Program(tmp_path, *resume), time.monotonic() + 100
            while newest(run, "distill") <= before:
                assert program.process.is_alive() and time.monotonic() < end, program.end(1)
                time.sleep(0.002)
            while file.write(b"\0" * 4096):
                pass
        output, kept = program.end(1), newest(run, "distill")
        assert "No space left" in output and "is kept" in output and f"ssdd distill --resume {run}" in output, output
        assert before < kept < STEPS and "Traceback" not in output
        output = finish(tmp_path, *resume, code=1)
        assert "0 kB of free space, which is too little" in output and newest(run, "distill") == kept
        filler.unlink()
        finish(tmp_path, "distill", "--resume", run)
        same_product(whole, run)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_advice_to_make_room_needs_a_full_disk_and_a_checkpoint(tmp_path):
    def ended_by(number):
        error = OSError(number, os.strerror(number), "somewhere")
        with pytest.raises(OSError) as found, say_how_to_go_on("GO", tmp_path):
            raise error
        return str(found.value), found.value is error

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        assert ended_by(number)[1]  # no checkpoint yet: the original error
    (tmp_path / "checkpoints").mkdir()
    assert ended_by(errno.ENOSPC)[1]
    Checkpoints(tmp_path / "checkpoints", "teacher").save(1, {})
    for number in (errno.ENOSPC, errno.EDQUOT):
        output, same = ended_by(number)
        assert "checkpoints are kept; make room, then go on with: GO" in output and "somewhere" in output and not same
    assert ended_by(errno.EACCES) == ("[Errno 13] Permission denied: 'somewhere'", True)


def test_a_teacher_killed_goes_on_to_the_same_bits(tmp_path):
    settings = SETTINGS[:4]
    finish(tmp_path, "teacher", "-q", "-o", tmp_path / "whole.safetensors", *settings)
    file = tmp_path / "killed.safetensors"
    folder = tmp_path / "killed.safetensors.training"
    kill_at(tmp_path, folder, "teacher", 8, "teacher", "-o", file, *settings)
    finish(tmp_path, "teacher", "--resume", file)
    assert file.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(entry.name for entry in folder.iterdir()) == ["finished", "run.json"]


def test_a_finished_teacher_is_lengthened(tmp_path):
    """It goes on from its last step; a kill on the way does not change the bits."""
    once, killed = tmp_path / "once.safetensors", tmp_path / "killed.safetensors"
    finish(tmp_path, "teacher", "-q", "-o", once, "--teacher.epochs=2", SETTINGS[1])
    short = once.read_bytes()
    shutil.copy(once, killed)
    shutil.copytree(f"{once}.training", f"{killed}.training")
    assert "this training is finished" in finish(tmp_path, "teacher", "--resume", once)
    output = finish(tmp_path, "teacher", "--resume", once, "--teacher.epochs=4")
    assert "teacher.epochs was 2 and is 4: the run goes on after step 10" in output
    kill_at(tmp_path, Path(f"{killed}.training"), "teacher", 13, "teacher", "--resume", killed, "--teacher.epochs=4")
    finish(tmp_path, "teacher", "--resume", killed)  # the new length is stored
    assert killed.read_bytes() == once.read_bytes() != short
    assert "is finished" in finish(tmp_path, "teacher", "--resume", once, "--teacher.epochs=3")  # no shorter
    shutil.rmtree(f"{once}.training")
    refused = finish(tmp_path, "teacher", "--resume", once, "--teacher.epochs=9", code=1)
    assert "its last checkpoint was removed" in refused


@pytest.mark.parametrize("verb", ["teacher", "pretrain"])
def test_a_training_that_replaces_a_file_is_resumed_without_saying_so_again(whole, tmp_path, verb):
    """As the advice that it prints when it is stopped says. The result has the bits of one that never stopped."""
    file, clean = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    begin = {
        "teacher": ["teacher", "--teacher.epochs=3", SETTINGS[1]],
        "pretrain": ["pretrain", whole / "distilled.safetensors", "--model=convnet-4-8", "--steps=40", "--batch=4"],
    }[verb]
    finish(tmp_path, *begin, "-q", "-o", clean)
    file.write_bytes(b"an earlier result")
    run = Path(f"{file}.training")
    output = kill_at(tmp_path, run, verb, 5, *begin, "-o", file, "--overwrite", number=signal.SIGINT)
    assert f"ssdd {verb} --resume {file}" in output and file.read_bytes() == b"an earlier result"
    kill_at(tmp_path, run, verb, 8, verb, "--resume", file)
    finish(tmp_path, verb, "--resume", file)
    assert file.read_bytes() == clean.read_bytes()
    assert "finished" in finish(tmp_path, verb, "--resume", file, code=int(verb == "pretrain"))


def test_resume_of_what_is_no_run(tmp_path):
    assert "has no run to resume" in finish(tmp_path, "distill", "--resume", tmp_path, code=1)
    (tmp_path / "a file").write_text("")
    advice = f"give the folder of its run, --resume {tmp_path}"
    assert advice in finish(tmp_path, "distill", "--resume", tmp_path / "a file", code=1)
    assert "nowhere does not exist" in finish(tmp_path, "distill", "--resume", tmp_path / "nowhere", code=1)
    assert "one of the two" in finish(tmp_path, "distill", code=1)
    (tmp_path / "run.json").write_text('{"settings": {"distill": {"speed": 1}}, "arguments": {}}')
    assert "speed" in finish(tmp_path, "distill", "--resume", tmp_path, code=1)
    (tmp_path / "run.json").write_text('{"settings": {"distill": {"lr": "x"}}, "arguments": {}}')
    assert "DistillConfig.lr: expected a value like" in finish(tmp_path, "distill", "--resume", tmp_path, code=1)
    for arguments, named in (
        ('{"data": 5}', "arguments.data: expected str, got 5"),
        ('{"size": "32"}', "arguments.size: expected int, got '32'"),
        ('{"seed": null}', "arguments.seed: expected int, got None"),
        ('{"seed": true}', "arguments.seed: expected int, got True"),
        ('{"teacher": ["a"]}', "arguments.teacher: expected str"),
        ('{"share": 2}', "arguments.share: expected str"),
        ("[1]", ""),
    ):
        (tmp_path / "run.json").write_text(f'{{"settings": {{}}, "arguments": {arguments}}}')
        with pytest.raises(InputError, match=rf"run\.json cannot be read.*{re.escape(named)}"):
            Run.read(tmp_path)
    (tmp_path / "run.json").write_text("[")
    assert "cannot be read" in finish(tmp_path, "distill", "--resume", tmp_path, code=1)
