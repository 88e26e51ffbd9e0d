"""One writer a folder: an advisory lock, which the kernel takes back when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import InputError

LOCK = ".lock"
"""The file of a folder that is locked while somebody writes there; what a killed holder leaves of it locks nobody."""

_WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What a file system answers that knows no locks: a run there goes on without one."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While it lasts no other process gets past its own ``locked(folder)``: that one raises :class:`InputError`."""
    file = folder / LOCK
    handle = _taken(file)
    while not _still(file, handle):  # the holder before took the file away between our opening and our locking it
        os.close(handle)
        handle = _taken(file)
    try:
        yield
    finally:
        if _still(file, handle):  # not the next holder's, where the folder was taken away meanwhile
            file.unlink()  # while it is locked: nobody else holds it
        os.close(handle)


@contextmanager
def wait_for_lock(file: Path) -> Iterator[int]:
    """Open ``file`` and lock it; every other ``wait_for_lock(file)`` waits until this one ends.

    Yields the descriptor. The file is made if it is not there, and stays. The kernel takes the lock back if its holder
    dies.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _WITHOUT:
                raise
        yield handle
    finally:
        os.close(handle)


def _taken(file: Path) -> int:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT:
            return handle
        os.close(handle)
        if not isinstance(error, BlockingIOError):
            raise
        raise InputError(
            f"{file.parent}: another process is at work in this folder; let it finish, stop it, or take another folder"
        ) from None
    return handle


def _still(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
