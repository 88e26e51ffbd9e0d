"""One writer per folder: an advisory lock, which the kernel releases when its holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import InputError

LOCK = ".lock"
"""The file of a folder that its writer locks. If it is left over from a killed process, it is not locked."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Error numbers of a file system without locks: a run there goes on without one."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` for the time of the context. Raises :class:`InputError` if another process holds
    it."""
    file = folder / LOCK
    handle = _acquire(file)
    while not _is_current(file, handle):  # the previous holder removed the file after we opened it
        os.close(handle)
        handle = _acquire(file)
    try:
        yield
    finally:
        if _is_current(file, handle):  # if the folder was removed meanwhile, the file is the next holder's
            file.unlink()  # before the lock is released, so that nobody else holds it
        os.close(handle)


@contextmanager
def wait_for_lock(file: Path) -> Iterator[int]:
    """Open ``file`` and lock it, after waiting for any other holder. Yields the descriptor.

    The file is created if it does not exist, and stays. The kernel releases the lock when its holder ends.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield handle
    finally:
        os.close(handle)


def _acquire(file: Path) -> int:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return handle
        os.close(handle)
        if not isinstance(error, BlockingIOError):
            raise
        raise InputError(
            f"{file.parent}: another process is writing here; let it finish, stop it, or choose another folder"
        ) from None
    return handle


def _is_current(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
