"""Ctrl-C and SIGTERM as a request that a run fulfils after its step, or that breaks off a step which takes long."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SECOND_REQUEST_AFTER = 1.0
"""Seconds after which a second signal is a second request."""
SAY_AFTER = 0.5
"""Seconds after which a request that is not yet fulfilled is said to be known. Short steps end before."""
BREAK_AFTER = 1.5
"""Seconds after which a request that is not yet fulfilled calls ``break_off``."""


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
