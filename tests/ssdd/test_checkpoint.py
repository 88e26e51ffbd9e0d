"""Checkpoints are read back bit for bit; damaged, foreign and hostile files are refused."""

import errno
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from ssdd.checkpoint import Checkpoints, Stopped, StopRequest, files, interruptible, stopping
from ssdd.checkpoint.stopping import SAY_AFTER, SECOND_REQUEST_AFTER
from ssdd.config import InputError

RUN = {"distill": {"lr": 0.01, "steps": 9}, "seed": 0}


def state(step=1):
    g = torch.Generator().manual_seed(step)
    return {
        "x": torch.randn(3, 4, generator=g),
        "generator": g.get_state(),
        "step": step,
        "none": None,
        "flag": True,
        "losses": [(1, 0.1 + 0.2), (2, float("inf"))],
        "snapshots": {0: torch.ones(2), 7: torch.zeros(0)},
        "good": (torch.tensor(1.5), torch.arange(3)),
        "text": "a",
        "nested": {3: {"step": torch.tensor(2.0)}},
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def events():
    return []


@pytest.fixture
def kept(tmp_path, events):
    """Checkpoints of a run that has written steps 1, 2 and 3."""
    c = Checkpoints(tmp_path / "c", every=0, report=events.append)
    assert c.begin(RUN) is None
    for step in (1, 2, 3):
        c.save(step, state(step))
    return c


def warnings(events):
    return [e["message"] for e in events if e["event"] == "warning"]


def test_what_is_written_comes_back(kept, events):
    assert same(kept.begin(RUN), state(3)) and not same(kept.begin(RUN), state(2))
    assert events[-1] == {"event": "resume", "stage": "distill", "step": 3, "file": "distill-000000003.safetensors"}


def test_the_newest_two_are_kept(kept):
    assert [f.name[-13] for f in kept.files()] == ["2", "3"]


def test_only_plain_values(kept):
    with pytest.raises(TypeError, match="object"):
        kept.save(4, {"x": object()})


@pytest.mark.parametrize("damage", ["truncated", "emptied", "one bit", "metadata"])
def test_a_damaged_newest_file_gives_way_to_the_one_before(kept, events, damage):
    file = kept.files()[-1]
    whole = bytearray(file.read_bytes())
    if damage == "one bit":
        whole[-1] ^= 1
    if damage == "metadata":
        whole = whole.replace(b'\\"flag\\", true', b'\\"flag\\", null', 1)
        assert whole != file.read_bytes()
    file.write_bytes(whole[: {"truncated": len(whole) * 2 // 3, "emptied": 0}.get(damage, len(whole))])
    assert same(kept.begin(RUN), state(2))
    assert any("distill-000000003" in w and "going on from distill-000000002" in w for w in warnings(events))


def test_nothing_but_damaged_files(kept):
    for file in kept.files():
        file.write_bytes(b"\x80\x04cos\nsystem\n")  # a pickle is not even opened
    with pytest.raises(InputError, match="None of the checkpoints can be read"):
        kept.begin(RUN)


def test_another_run_is_refused_by_the_field_that_differs(kept):
    with pytest.raises(InputError, match=r"distill\.lr = 0\.01 there, 0\.03 here"):
        kept.begin({**RUN, "distill": {"lr": 0.03, "steps": 9}})
    with pytest.raises(InputError, match=r"other = None there, 1 here.*seed = 0 there, 1 here"):
        kept.begin({**RUN, "seed": 1, "other": 1})


def test_a_checkpoint_older_than_a_setting_resumes_if_that_has_its_default(kept):
    younger = {"networks": 1, "tv_weight": 0.0, "views": 0}
    assert same(kept.begin({**RUN, "distill": {**RUN["distill"], **younger}}), state(3))
    with pytest.raises(InputError, match=r"of another run: distill\.tv_weight = 0\.0 there, 0\.5 here\. Resume"):
        kept.begin({**RUN, "distill": {**RUN["distill"], **younger, "tv_weight": 0.5}})


def test_another_number_of_threads_is_reported(kept, events, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert same(kept.begin(RUN), state(3))
    assert any("threads" in w and "bits" in w for w in warnings(events))


def test_a_stop_request_writes_first(tmp_path):
    c = Checkpoints(tmp_path, every=1e9)
    with pytest.raises(Stopped, match="after step 5"):
        c.save(5, state(5), stop=True)
    assert same(Checkpoints(tmp_path).begin({}), state(5))


def test_due_when_time_has_passed(tmp_path):
    assert Checkpoints(tmp_path, every=0).due() and not Checkpoints(tmp_path, every=1e9).due()
    with pytest.raises(InputError, match="checkpoint_every"):
        Checkpoints(tmp_path, every=-1)


def test_clear_leaves_other_stages_alone(kept):
    other = Checkpoints(kept.folder, "teacher")
    other.save(1, state())
    kept.clear()
    assert not kept.files() and len(other.files()) == 1
    other.clear()
    assert not kept.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_the_second_interrupts(number):
    output = []
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    with pytest.raises(KeyboardInterrupt), interruptible(output.append) as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher passes it on: this is no second request
        assert stop() and not output
        time.sleep(SECOND_REQUEST_AFTER + 0.05)
        assert len(output) == 1  # a step that takes long
        os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_stops_soon_does_not_say_that_it_will():
    output, threads = [], threading.active_count()
    with interruptible(output.append) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    time.sleep(SAY_AFTER + 0.05)
    assert not output and signal.set_wakeup_fd(-1) == -1 and threading.active_count() == threads


def test_a_pipe_of_signals_of_the_program_is_left_alone():
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes)
    try:
        with interruptible() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop() and os.read(reads, 1) == bytes([signal.SIGTERM])
        assert signal.set_wakeup_fd(-1) == writes
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reads)
        os.close(writes)


def test_a_signal_to_a_forked_child_is_no_request_to_the_parent(monkeypatch):
    monkeypatch.setattr(stopping, "SAY_AFTER", 0.1)
    output = []
    with interruptible(output.append) as stop:
        if not (child := os.fork()):
            signal.pause()
            os._exit(int(stop()))
        while "S" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
            time.sleep(0.01)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1  # its own copy has the request
        time.sleep(0.2)
        assert not stop() and not output


def test_a_step_that_takes_long_is_broken_off(fresh):
    """The step is one call of LAPACK that takes many seconds, in which no handler of Python runs."""
    code = (
        "import os, signal, threading, torch\n"
        "from ssdd.checkpoint import interruptible, stopping\n"
        "stopping.SAY_AFTER, stopping.BREAK_AFTER = 0.1, 0.2\n"
        "torch.set_num_threads(1)\n"
        "x = torch.randn(3000, 3000)\n"
        "with interruptible(break_off=lambda: os._exit(7)):\n"
        "    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "    torch.linalg.eig(x)\n"
    )
    done = fresh(code)
    assert done.returncode == 7 and "broken off if it takes long" in done.stdout + done.stderr


def test_a_checkpoint_that_is_being_written_is_not_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "SAY_AFTER", 0.02)
    monkeypatch.setattr(stopping, "BREAK_AFTER", 0.04)
    output = []
    monkeypatch.setattr(os, "fsync", lambda handle: (time.sleep(0.15), output.append("written")))
    with interruptible(output.append, lambda: output.append("broken off")) as stop:
        kept = Checkpoints(tmp_path, stop=stop)
        os.kill(os.getpid(), signal.SIGINT)
        kept.save(1, state(1))
        time.sleep(0.1)
    assert len(output) == 3 and output[1:] == ["written", "broken off"] and same(kept.begin({}), state(1))


def test_slow_steps_are_followed_by_a_checkpoint_each(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(files.time, "monotonic", lambda: next(clock))
    quick = Checkpoints(tmp_path, every=1e9, stop=StopRequest(break_off=lambda: None))
    waits = Checkpoints(tmp_path, every=1e9, stop=StopRequest())
    assert quick.due() and not waits.due()
    quick.save(1, state(1))  # it takes 10 s, so that the next one comes after at least 200 s
    assert [quick.due() for _ in range(20)].index(True) == 19
    monkeypatch.setattr(files, "SLOW_STEP", 11)
    assert not quick.due()


def test_work_without_steps_is_interrupted_at_once(tmp_path):
    with interruptible(lambda line: None) as stop:
        alone, shared = (Checkpoints(tmp_path, stop=stop, processes=n) for n in (1, 2))
        with shared.without_steps():
            pass
        with pytest.raises(KeyboardInterrupt), alone.without_steps():
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the signal comes first")
        with pytest.raises(KeyboardInterrupt), alone.without_steps():
            pytest.fail("a stop was requested before")
        with shared.without_steps():  # the other processes wait for this one
            os.kill(os.getpid(), signal.SIGINT)
    with Checkpoints(tmp_path).without_steps():
        pass


def test_a_signal_in_the_middle_of_an_output_still_requests_a_stop(capfd):
    """What prints the request may be interrupted itself, in the middle of an import or of another line."""

    def fails(text):
        raise ImportError("cannot import name 'EMOJI' from partially initialized module")

    with interruptible(fails) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        time.sleep(SAY_AFTER + 0.1)
    assert capfd.readouterr().err.startswith("stopping: this step is finished")


def full_disk(folder):
    """Mount a file system of 64 KiB at ``folder``; return False if this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    return mounted.returncode == 0


def test_a_full_disk_keeps_the_last_good_one(tmp_path, events):
    """The disk is really full if we may mount one. Otherwise a limit on the size of files fails at the same call."""
    folder = tmp_path / "small"
    mounted = full_disk(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    c = Checkpoints(folder, every=0, report=events.append)
    try:
        c.begin(RUN)
        c.save(1, state(1))
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
        c.save(2, {**state(2), "x": torch.zeros(100_000)})  # 400 KB
        reason = os.strerror(errno.ENOSPC if mounted else errno.EFBIG)
        assert any(
            "step 2" in w and reason in w and "distill-000000001.safetensors is kept" in w for w in warnings(events)
        ), events
        assert [f.name for f in folder.iterdir()] == ["distill-000000001.safetensors"]
        assert same(c.begin(RUN), state(1))
        c.save(3, state(3))  # and it continues when there is room
        assert same(c.begin(RUN), state(3))
        with pytest.raises(Stopped, match="could not be written"):
            c.save(4, {"x": torch.zeros(100_000)}, stop=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", folder], check=True)


def test_a_write_that_is_killed_leaves_the_old_files(fresh, tmp_path):
    """kill -9 during write_atomically leaves at worst a temporary file, never an incomplete checkpoint."""
    code = (
        "import os, signal, sys, torch, ssdd.artifact\n"
        "from ssdd.checkpoint import Checkpoints\n"
        "from ssdd.checkpoint.stopping import SECOND_REQUEST_AFTER\n"
        "c = Checkpoints(sys.argv[1], every=0); c.begin({}); c.save(1, {'x': torch.ones(5)})\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "c.save(2, {'x': torch.zeros(5)})\n"
    )
    assert fresh(code, tmp_path).returncode == -signal.SIGKILL
    c = Checkpoints(tmp_path)
    assert [f.name for f in c.files()] == ["distill-000000001.safetensors"] and len(list(tmp_path.iterdir())) == 2
    assert torch.equal(c.begin({})["x"], torch.ones(5)) and len(list(tmp_path.iterdir())) == 1
