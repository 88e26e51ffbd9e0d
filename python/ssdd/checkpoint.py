"""Checkpoints of a run: written completely or not at all, the newest two kept, read without executing anything.

A checkpoint is a safetensors file. Its metadata hold the structure of the state as JSON (tensors by name), the identity
of the run (settings, seed, data), and a SHA-256 of all of it. If a file was cut short or damaged, the checksum shows
it, and the checkpoint before it is read instead.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from .artifact import read_safetensors, write_atomically
from .config import InputError, Report, differences, silent, versions

FORMAT = "ssdd.checkpoint"
FORMAT_VERSION = 1
KEPT = 2
"""Checkpoints that stay; older ones are removed."""
SECOND_REQUEST_AFTER = 1.0
"""Seconds after which a second signal is a second request."""
SAY_AFTER = 0.5
"""Seconds after which a request that is not yet fulfilled is said to be known. Short steps end before."""
BREAK_AFTER = 1.5
"""Seconds after which a request that is not yet fulfilled calls ``break_off``."""
SLOW_STEP = 1.0
"""A checkpoint is written after each step of so many seconds, as a stop may not wait for the next one."""
SHARE_OF_WRITING = 0.05
"""Of the time, the most that these additional checkpoints take."""


class Stopped(Exception):
    """A run stopped on request, after a complete step and with a checkpoint. The message says after which step."""


class Checkpoints:
    """The checkpoints of one stage of a run.

    Trouble that does not end the run (a full disk, a damaged newest file) is reported as ``{"event": "warning",
    "message"}``.

    Args:
        folder: the folder of the files.
        stage: the first word of the files' names. Default "distill".
        every: seconds between two checkpoints. Default 60. It changes no number of the result.
        stop: called after each step; once it returns True the run writes a checkpoint and raises :class:`Stopped`.
            Default: never.
        report: receives the warnings. Default: nothing is reported.
        writes: False only reads: of the processes that share a run, one writes. Default True.
        processes: number of processes that share the run. Default 1.
        device: the device that the run computes on. Default: the CPU.
    """

    EVERY = 60.0
    """Default seconds between two checkpoints."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        stage: str = "distill",
        *,
        every: float = EVERY,
        stop: Callable[[], bool] = lambda: False,
        report: Report = silent,
        writes: bool = True,
        processes: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if every < 0:
            raise InputError(f"checkpoint_every: expected seconds, 0 or more, got {every}")
        self.folder, self.stage, self.every = Path(folder), stage, every
        self.stop, self.report, self.writes = stop, report, writes
        self._processes, self._device = processes, device
        self._identity: dict[str, Any] = {}
        self._of_run: dict[str, Any] = {}
        self._last = self._asked = time.monotonic()
        self._written_in = 0.0

    def before(self, stage: str) -> Checkpoints:
        """Return the checkpoints of a stage of the same run that comes before this one.

        Call it after :meth:`begin`, whose identity the stage's checkpoints store beside their own: a checkpoint of the
        stage is refused if this run is another one.
        """
        earlier = copy.copy(self)
        earlier.stage, earlier._of_run = stage, self._identity
        earlier._last = earlier._asked = time.monotonic()
        return earlier

    def files(self) -> list[Path]:
        """Return the existing checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{self.stage}-*.safetensors"))

    def begin(self, identity: dict[str, Any], length: tuple[str, int] | None = None) -> dict[str, Any] | None:
        """Return the newest state that can be read, or None if there is no checkpoint yet.

        Args:
            identity: JSON values that say which run this is; every checkpoint stores them.
            length: the key of the setting that may differ, as it is the length of the run, and the run's steps.

        Raises:
            InputError: if the checkpoint is of another run, naming what differs, or if all checkpoints are damaged.
        """
        self._identity = json.loads(json.dumps({**self._of_run, **identity}))  # as it will look when it is read back
        self._asked = time.monotonic()
        for torn in self.folder.glob(f"{self.stage}-*.safetensors.*") if self.writes else []:
            torn.unlink(missing_ok=True)  # a write that was killed half-way
        troubles = []
        for file in reversed(self.files()):
            try:
                state, meta = _read(file)
            except InputError as error:
                troubles.append(str(error))
                continue
            self._check_same(file, meta, length)
            for trouble in troubles:
                self._warn(f"{trouble}; going on from {file.name}, the one before it")
            for key, value in meta["environment"].items():
                now = environment(self._processes, self._device).get(key)
                if now != value:
                    self._warn(
                        f"{file.name}: written with {key} = {value!r}, now {now!r}: the run goes on, "
                        "but no longer to the same bits"
                    )
            self.report({"event": "resume", "stage": self.stage, "step": meta["step"], "file": file.name})
            return state
        if troubles:
            raise InputError(f"{'; '.join(troubles)}. None of the checkpoints can be read: start the run anew")
        return None

    def _check_same(self, file: Path, meta: dict[str, Any], length: tuple[str, int] | None) -> None:
        """Raise for a checkpoint of another run. A run of another length goes on, with a warning."""
        found = differences(meta["identity"], self._identity)
        if length is not None and length[0] in found and meta["step"] <= length[1]:
            there, here = found.pop(length[0])
            self._warn(
                f"{length[0]} was {there} and is {here}: the run goes on after step {meta['step']}, and its learning "
                f"rate follows the new length from there; the bits are not those of a run that began with this length"
            )
        _refuse_other_run(file, found)

    @contextmanager
    def without_steps(self) -> Iterator[None]:
        """Do long work that has no steps: a request to stop raises KeyboardInterrupt. One of several processes goes
        on, as the others wait for it."""
        with self.stop.at_once() if isinstance(self.stop, StopRequest) and self._processes == 1 else nullcontext():
            yield

    def due(self) -> bool:
        """Return True if ``every`` seconds have passed since the last checkpoint, or if steps are so slow that a stop
        may break off the next one. Call it once per step."""
        now = time.monotonic()
        step, self._asked = now - self._asked, now
        since = now - self._last
        slow = isinstance(self.stop, StopRequest) and self.stop.breaks_off and step >= SLOW_STEP
        return since >= self.every or (slow and since * SHARE_OF_WRITING >= self._written_in)

    def save(self, step: int, state: dict[str, Any], stop: bool = False) -> None:
        """Write ``state``, after ``step`` steps. Raises :class:`Stopped` if ``stop`` is set.

        If the file cannot be written (no space left, for example), the last good one stays, a warning is reported, and
        the run goes on.
        """
        file = self.folder / f"{self.stage}-{step:09d}.safetensors"
        written = not self.writes
        began = time.monotonic()
        if self.writes:
            with self.stop.writing if isinstance(self.stop, StopRequest) else nullcontext():
                written = self._write(file, step, state)
        self._last = self._asked = time.monotonic()
        self._written_in = self._last - began
        if stop:
            raise Stopped(
                f"stopped after step {step}"
                if written
                else f"stopped after step {step}, but its checkpoint could not be written"
            )

    def _write(self, file: Path, step: int, state: dict[str, Any]) -> bool:
        """Write ``file`` and remove older ones; return False, after a warning, if that is refused."""
        try:
            write_atomically(file, self._to_bytes(step, state))
        except OSError as error:
            last = self.files()
            kept = f"{last[-1].name} is kept" if last else "there is none before it"
            self._warn(f"no checkpoint of step {step} ({error.strerror or error}): {kept}")
            return False
        for old in [f for f in self.files() if f != file][: 1 - KEPT]:
            old.unlink(missing_ok=True)
        return True

    def clear(self) -> None:
        """Remove the checkpoints of this stage, which are large. Call it when the result is written."""
        for file in self.files() if self.writes else []:
            file.unlink(missing_ok=True)
        if self.writes and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def keep_last(self, folder: Path) -> None:
        """Move the newest checkpoint to ``folder`` and remove the others: a finished run can be lengthened from it."""
        files = self.files()
        if self.writes and files:
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(files[-1], folder / files[-1].name)
        self.clear()

    def _to_bytes(self, step: int, state: dict[str, Any]) -> bytes:
        tensors: dict[str, Tensor] = {}
        meta = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "stage": self.stage,
            "step": step,
            "identity": self._identity,
            "environment": environment(self._processes, self._device),
            "state": _pack(state, tensors),
        }
        meta["sha256"] = _digest(meta, tensors)
        return to_bytes(tensors, metadata={"ssdd": json.dumps(meta)})

    def _warn(self, message: str) -> None:
        self.report({"event": "warning", "message": message})


class StopRequest:
    """A request to stop, for ``Checkpoints(stop=...)``: calling it returns True once there is one.

    Python runs a signal's handler between two of its own instructions, so not while PyTorch computes a long gradient.
    A thread therefore watches for the signal too, by the pipe to which the interpreter writes its number at once.
    """

    def __init__(self, say: Callable[[str], None] | None = None, break_off: Callable[[], object] | None = None) -> None:
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._break_off = break_off
        self._requested_at: float | None = None
        self._at_once = False
        self._ended = threading.Event()
        self.writing = threading.Lock()
        """Held while a checkpoint is written, which is not broken off."""

    def __call__(self) -> bool:
        return self._requested_at is not None

    @property
    def breaks_off(self) -> bool:
        """True if a step that takes long is broken off."""
        return self._break_off is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise KeyboardInterrupt on a request in this context, or before it: long work that has no steps."""
        self._at_once = True
        try:
            if self():
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def on_signal(self, number: int, frame: Any) -> None:
        """Note the request. Raises KeyboardInterrupt for a second one."""
        first, self._requested_at = self._requested_at, self._requested_at or time.monotonic()
        if self._at_once or (first is not None and time.monotonic() - first > SECOND_REQUEST_AFTER):
            raise KeyboardInterrupt

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for the signals in a thread. A program that has a use for the pipe of signals keeps it."""
        global _watching
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        if before == -1:
            _watching = True
        else:
            signal.set_wakeup_fd(before)
        thread = threading.Thread(target=self._watch, args=(reads,), name="ssdd stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            if before == -1 and _watching:
                signal.set_wakeup_fd(-1)
                _watching = False
            os.write(writes, b"\0")  # the thread may still be reading
            thread.join()
            os.close(writes)
            os.close(reads)

    def _watch(self, reads: int) -> None:
        """Wait for a request; say after a moment that it is known, and call ``break_off`` if it is not fulfilled."""
        while not self._ended.is_set() and os.read(reads, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass  # another signal that the program handles
        if self._ended.wait(SAY_AFTER):
            return
        self._tell()
        if self._break_off is None or self._ended.wait(BREAK_AFTER - SAY_AFTER):
            return
        with self.writing:
            if not self._ended.is_set():
                self._break_off()

    def _tell(self) -> None:
        text = "stopping: this step is finished and a checkpoint written (once more to break off at once)"
        if self._break_off is not None:
            text = "stopping: after this step, which is broken off if it takes longer than 2 s"
        try:
            self._say(text)
        except Exception:  # whatever is wrong with the output, the run stops
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())


_watching = False
"""True while this process has a :class:`StopRequest` with a pipe of signals."""


def _leave_the_pipe() -> None:
    """Leave the pipe of signals to the parent: a signal to a forked child is no request to stop the parent."""
    global _watching
    if _watching:
        signal.set_wakeup_fd(-1)
        _watching = False


os.register_at_fork(after_in_child=_leave_the_pipe)


@contextmanager
def interruptible(
    say: Callable[[str], None] | None = None, break_off: Callable[[], object] | None = None
) -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request to stop, for the time of the context.

    A second signal, at least a second later, raises KeyboardInterrupt at once. (A launcher of several processes may
    pass on a Ctrl-C that the terminal has already sent to them, so an immediate second one does not count.)

    Args:
        say: called with a line of text, in a thread, if the run has not stopped half a second after the request.
            Default: print it on standard error.
        break_off: called in a thread, never while a checkpoint is written, if the run has not stopped after
            BREAK_AFTER seconds. It should end the process, as ``os._exit`` does; the run then goes on from its last
            checkpoint. Steps of a second and more are followed by a checkpoint each. Default: the step is waited for.

    Yields:
        The callable for ``Checkpoints(stop=...)``.
    """
    request = StopRequest(say, break_off)
    before = {number: signal.signal(number, request.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with request.watched():
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(processes: int = 1, device: torch.device | None = None) -> dict[str, Any]:
    """Return what must stay the same, besides the run's identity, for a resumed run to give the same bits."""
    threads = torch.get_num_threads()
    values = {"threads": threads, "processes": processes, "processor": platform.machine(), **versions()}
    values["device"] = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "cpu"
    return values


def fingerprint(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's shape, type and bytes. An identity names large inputs by it."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON: containers as [kind, content], tensors by their names in ``tensors``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return ["tensor", name]
    if isinstance(value, dict):
        return ["dict", [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        return ["tuple" if isinstance(value, tuple) else "list", [_pack(v, tensors) for v in value]]
    raise TypeError(f"state: expected tensors and plain values, got {type(value).__name__}")


def _unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(packed, list):
        return packed
    kind, content = packed
    if kind == "tensor":
        # A copy in torch's own memory, which has the same alignment as when the state was computed.
        return tensors[content].clone()
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    values = [_unpack(v, tensors) for v in content]
    return tuple(values) if kind == "tuple" else values


def _digest(meta: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, meta = read_safetensors(file)
    if meta.get("format") != FORMAT or meta.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{file.name}: not a checkpoint that this ssdd reads (format {meta.get('format')!r}, "
            f"version {meta.get('format_version')!r})"
        )
    if meta.pop("sha256", None) != _digest(meta, tensors):
        raise InputError(f"{file.name}: damaged checkpoint (its checksum does not match)")
    return _unpack(meta["state"], tensors), meta


def _refuse_other_run(file: Path, found: dict[str, Any]) -> None:
    differ = [f"{key} = {_short(there)} there, {_short(here)} here" for key, (there, here) in found.items()]
    if differ:
        raise InputError(
            f"resume: {file.name} is of another run: {'; '.join(differ)}. Resume with what that run began with, or "
            "begin a new run in another folder"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:24]}...{text[-24:]}"
