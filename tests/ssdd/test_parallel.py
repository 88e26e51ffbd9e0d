"""Two gloo processes on one run give the numbers of one process, and end with a clear message if one of them is
killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdd.artifact import lock_folder, read_safetensors
from ssdd.checkpoint import Checkpoints
from ssdd.config import InputError, TeacherConfig
from ssdd.data import load_images
from ssdd.parallel import ALONE, Processes, join_processes
from ssdd.selection import random_subset
from ssdd.teachers import read_representations, train_teacher

SETTINGS = [
    "--student.model=convnet-4-8",
    "--distill.pool=3",
    "--distill.pool_steps=6",
    "--distill.log_every=4",
    "--distill.batch=51",
    "-m",
    "6",
    "--steps",
    "12",
]


@pytest.mark.parametrize("way, size, n, networks", [("batch", 3, 10, 1), ("networks", 3, 10, 7), ("batch", 1, 5, 2)])
def test_the_parts_are_the_whole(way, size, n, networks):
    parts = [Processes(rank, size, way) for rank in range(size)]
    assert sum(p.weight(n, networks) for p in parts) == pytest.approx(1)
    if way == "batch":
        assert [i for p in parts for i in range(n)[p.rows(n)]] == list(range(n))
        assert all(p.networks([4, 5]) == [4, 5] for p in parts)
        assert all(p.weight(n, networks) == pytest.approx(len(range(n)[p.rows(n)]) / n) for p in parts)
    else:
        assert sorted(i for p in parts for i in p.networks(range(networks))) == list(range(networks))
        assert all(p.rows(n) == slice(0, n) for p in parts)
        assert all(i in parts[parts[0].owner(i)].networks(range(networks)) for i in range(networks))


def test_alone_changes_nothing():
    loss, gradient = torch.tensor(2.0), torch.ones(3)
    assert ALONE.combine(loss, [gradient], 1.0, True) == (loss, True) and torch.equal(gradient, torch.ones(3))


def test_share_needs_torchrun_and_a_known_word():
    with pytest.raises(InputError, match="torchrun"), join_processes("batch"):
        pass
    with pytest.raises(InputError, match="batch, networks"), join_processes(otherwise="weights"):
        pass


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images and representations as files, so that no teacher is trained."""
    folder, g = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    np.savez(folder / "set.npz", x_train=g.integers(0, 256, (80, 8, 8, 1), dtype=np.uint8))
    np.save(folder / "r.npy", g.standard_normal((80, 5)).astype(np.float32))
    return ["-d", folder / "set.npz", "--representations", folder / "r.npy"]


def environment(folder):
    return {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}


@pytest.fixture(scope="module")
def torchrun():
    """torchrun(folder, *arguments): start the program on two processes as a user does, by torchrun."""

    def start(folder, *arguments):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        program = ["-m", "ssdd.cli", "distill", *map(str, arguments)]
        return subprocess.Popen(
            [sys.executable, *launcher, *program],
            text=True,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


@pytest.fixture(scope="module")
def finish(fork_server):
    """finish(folder, processes, *arguments): run the program on so many processes; return what it printed."""

    def run(folder, processes, *arguments, fails=False):
        started = fork_server(processes, "distill", *arguments, XDG_CACHE_HOME=str(folder / "cache"))
        codes, output = started.wait()
        assert all(codes) if fails else not any(codes), output
        return output

    return run


def product(run):
    tensors, meta = read_safetensors(run / "distilled.safetensors")
    return tensors["images"], tensors["targets"], meta["metrics"]


@pytest.mark.parametrize(
    "way, changes",
    [
        ("batch", []),
        ("networks", ["--distill.networks=3"]),
    ],
)
def test_two_processes_equal_one(finish, source, tmp_path, way, changes):
    finish(tmp_path, 1, "-q", "-o", tmp_path / "one", *source, *SETTINGS, *changes)
    output = finish(tmp_path, 2, "-o", tmp_path / "two", *source, *SETTINGS, *changes, "--share", way)
    assert output.count("distilled.safetensors") == 1  # one writer
    (x1, y1, m1), (x2, y2, m2) = product(tmp_path / "one"), product(tmp_path / "two")
    assert m1["untrained_share"] == m2["untrained_share"] and m1["mean_age"] == m2["mean_age"]
    assert m1["loss"] == pytest.approx(m2["loss"], rel=1e-3)
    data = load_images(source[1])
    rows = random_subset(len(data.x_train), len(x1), 0)
    x0, y0 = data.x_train[rows].permute(0, 3, 1, 2) / 255, read_representations(source[3], data).train[rows]
    for ours, theirs, before in ((x2, x1, x0), (y2, y1, y0)):
        moved = float((theirs - before).abs().mean())
        assert moved > 1e-3 and float((ours - theirs).abs().mean()) < 0.02 * moved


def child_of(process, rank):
    """Return the process id of the torchrun worker with that rank."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process.pid and f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
                return pid
        except (OSError, IndexError):
            continue
    raise AssertionError("no such worker")


LONG = [*SETTINGS, "--distill.steps=40"]


@pytest.fixture(scope="module")
def whole(finish, source, tmp_path_factory):
    """The run of two processes that nobody kills."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, 2, "-q", "-o", folder / "run", *source, *LONG)
    return folder / "run"


def wait_for_step(run, step, running):
    """Wait until the run has a checkpoint of this step or a later one."""
    end = time.monotonic() + 100
    while not [f for f in Checkpoints(run / "checkpoints").files() if int(f.stem[-9:]) >= step]:
        assert running() and time.monotonic() < end
        time.sleep(0.01)


def hold_lost(output, run, rank):
    assert f"one of the 2 processes of this run has ended; process {1 - rank} cannot go on" in output, output
    assert f"torchrun --nproc-per-node 2 -m ssdd.cli distill --resume {run}" in output


def hold_resumed(finish, folder, run, whole):
    output = finish(folder, 2, "--resume", run)
    assert "going on from distill-" in output and output.count("going on from") == 1
    assert all(torch.equal(a, b) for a, b in zip(product(whole)[:2], product(run)[:2], strict=True))


def test_one_killed_under_torchrun_ends_the_run_and_it_goes_on(torchrun, finish, source, whole, tmp_path):
    run = tmp_path / "run"
    process = torchrun(tmp_path, "-o", run, *source, *LONG, "--checkpoint-every", 0)
    wait_for_step(run, 5, lambda: process.poll() is None)
    os.kill(child_of(process, 0), signal.SIGKILL)
    output = process.communicate(timeout=110)[0]
    assert process.returncode, output
    hold_lost(output, run, 0)
    hold_resumed(finish, tmp_path, run, whole)


def test_one_killed_ends_the_other_without_torchruns_help(fork_server, finish, source, whole, tmp_path):
    run = tmp_path / "run"
    started = fork_server(2, "distill", "-o", run, *source, *LONG, "--checkpoint-every", 0)
    wait_for_step(run, 5, lambda: True)
    os.kill(started.pids[1], signal.SIGKILL)
    codes, output = started.wait()
    assert codes == [1, -signal.SIGKILL], output
    hold_lost(output, run, 1)
    hold_resumed(finish, tmp_path, run, whole)


def test_ctrl_c_stops_all_of_them_after_the_same_step(torchrun, source, tmp_path):
    run = tmp_path / "run"
    process = torchrun(tmp_path, "-o", run, *source, *SETTINGS, "--steps", "400", "--checkpoint-every", 0)
    wait_for_step(run, 2, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=110)[0]
    assert "stopped after step" in output and f"distill --resume {run}" in output and "has ended" not in output, output


def test_more_processes_than_parts(finish, source, tmp_path):
    output = finish(tmp_path, 2, "-o", tmp_path / "run", *source, *SETTINGS, "--share", "networks", fails=True)
    assert "distill.networks: expected one or more for each of 2 processes, got 1" in output
    assert not (tmp_path / "run").exists()  # the corrected command finds it free
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").touch()
    output = finish(tmp_path, 2, "-o", tmp_path / "other", *source[:2], *SETTINGS, fails=True)
    assert "ssdd teacher -o FILE" in output
    output = finish(tmp_path, 2, "-o", tmp_path / "run", *source, *SETTINGS, fails=True)  # the folder is there
    assert "is not empty" in output and "has ended" not in output, output
    with lock_folder(tmp_path / "run"):
        output = finish(tmp_path, 2, "-o", tmp_path / "run", "--overwrite", *source, *SETTINGS, fails=True)
    assert "another process is writing here" in output and "has ended" not in output, output


def test_known_views_are_written_once_for_both(finish, source, tmp_path):
    data, folders = load_images(source[1]), [tmp_path / "one", tmp_path / "two"]
    config = TeacherConfig(widths=(4, 8), epochs=1, batch=16, projector=8)
    teacher = train_teacher(data, config).save(tmp_path / "teacher.safetensors")
    views = ["-t", teacher, "--distill.real_view=augmented", "--distill.views=2"]
    for folder, processes in zip(folders, (1, 2), strict=True):
        folder.mkdir()
        finish(folder, processes, "-q", "-o", folder / "run", *source[:2], *SETTINGS, *views)
    kept = [{file.name: file.read_bytes() for file in (folder / "cache" / "ssdd").glob("*.npy")} for folder in folders]
    assert kept[0] == kept[1] and len(kept[0]) == 2  # the plain representations and those of the views, bit for bit
    (x1, y1, m1), (x2, y2, m2) = product(folders[0] / "run"), product(folders[1] / "run")
    assert m1["loss"] == pytest.approx(m2["loss"], rel=1e-3)
    assert float((x1 - x2).abs().mean()) < 1e-3 and float((y1 - y2).abs().mean()) < 1e-3
