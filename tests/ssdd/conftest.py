"""Shared fixtures of the distillation's tests: real digits, a quickly trained teacher, small settings."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssdd.cli import run
from ssdd.config import DistillConfig, EvaluateConfig, PretrainConfig, StudentConfig, preset
from ssdd.data import ImageSet, load_images
from ssdd.models import build
from ssdd.teachers import represent, train_teacher


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Use one thread: small images are no faster on more, and the time of a test then varies less between machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass
class Output:
    """The output of a command, and its exception."""

    stdout: str
    stderr: str
    exception: BaseException | None

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


@pytest.fixture(scope="session")
def ssdd_command(tmp_path_factory):
    """ssdd_command(*arguments, fails=False): the program in this process, with a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")

    def command(*arguments, fails=False) -> Output:
        out, err = io.StringIO(), io.StringIO()
        before, raised = os.environ.get("XDG_CACHE_HOME"), None
        os.environ["XDG_CACHE_HOME"] = str(cache)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                run([str(a) for a in arguments])
        except SystemExit as end:
            raised = end if end.code else None
        except Exception as error:
            raised = error
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before
        if (raised is not None) != fails:
            raise AssertionError(out.getvalue() + err.getvalue()) from raised
        return Output(out.getvalue(), err.getvalue(), raised)

    return command


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclasses.dataclass
class Started:
    """Processes of the program that the fork server started."""

    pids: list[int]
    server: subprocess.Popen
    output: Path
    ended: bool = False

    def wait(self) -> tuple[list[int], str]:
        """Return the exit codes (-9: killed) and what all of them printed."""
        codes = answer(self.server, self.output)
        self.ended = True
        return codes, self.output.read_text()

    def end(self) -> None:
        """Kill those that a failed test has left."""
        if not self.ended:
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait()


def answer(server: subprocess.Popen, output: Path) -> list[int]:
    """Return the server's next line. It is read unbuffered: one line is all that is there."""
    ready, _, _ = select.select([server.stdout], [], [], 110)
    line = server.stdout.readline() if ready else b""
    assert line, output.read_text() if output.exists() else "the fork server has ended"
    return json.loads(line)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """fork_server(processes, *arguments, **environment): start the program; return :class:`Started`."""
    folder = tmp_path_factory.mktemp("fork-server")
    server = subprocess.Popen(
        [sys.executable, "-P", Path(__file__).with_name("fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    outputs = (folder / f"{i}.txt" for i in itertools.count())
    last: list[Started] = []

    def start(processes: int, *arguments, **environment) -> Started:
        if last:
            last.pop().end()
        output = next(outputs)
        request = {
            "size": processes,
            "port": free_port(),
            "arguments": [str(a) for a in arguments],
            "environment": {"XDG_CACHE_HOME": str(folder / "cache"), **environment},
            "output": str(output),
        }
        server.stdin.write(json.dumps(request).encode() + b"\n")
        last.append(Started(answer(server, output), server, output))
        return last[-1]

    yield start
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    return load_images("digits")


@pytest.fixture(scope="session")
def few(digits) -> ImageSet:
    """400 training and 100 held-out digits."""
    return ImageSet("few", digits.x_train[:400], digits.x_test[:100], digits.y_train[:400], digits.y_test[:100])


@pytest.fixture(scope="session")
def small():
    """Settings that make a whole run take a few seconds."""
    settings = preset("digits")
    return dataclasses.replace(
        settings,
        student=StudentConfig(model="convnet-8-16"),
        teacher=dataclasses.replace(settings.teacher, widths=(16, 16), epochs=40, batch=100, projector=64),
        distill=DistillConfig(images=12, steps=60, batch=128, pool=3, pool_steps=40, log_every=20, crop_pad=1),
        pretrain=PretrainConfig(steps=150, lr=0.4),
        evaluate=EvaluateConfig(labels=(5, 0), draws=1),
    )


@pytest.fixture(scope="session")
def teacher(few, small):
    return train_teacher(few, small.teacher)


@pytest.fixture(scope="session")
def representations(teacher, few):
    return represent(teacher, few)


@pytest.fixture(scope="session")
def make(small):
    """make(outputs): a student for 8x8 digits."""
    return lambda outputs: build(small.student.model, 1, (8, 8), outputs)
