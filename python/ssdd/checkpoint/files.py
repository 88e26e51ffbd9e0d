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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..artifact import read_safetensors, write_atomically
from ..config import InputError, Report, differences, silent, versions
from .stopping import StopRequest

FORMAT = "ssdd.checkpoint"
FORMAT_VERSION = 1
KEPT = 2
"""Checkpoints that stay; older ones are removed."""
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
        self._request = stop if isinstance(stop, StopRequest) else StopRequest()  # else one that nobody makes
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
        with self._request.at_once() if self._processes == 1 else nullcontext():
            yield

    def due(self) -> bool:
        """Return True if ``every`` seconds have passed since the last checkpoint, or if steps are so slow that a stop
        may break off the next one. Call it once per step."""
        now = time.monotonic()
        step, self._asked = now - self._asked, now
        since = now - self._last
        slow = self._request.breaks_off and step >= SLOW_STEP
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
            with self._request.writing:
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
