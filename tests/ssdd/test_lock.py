"""One writer per folder: the second is refused by name, and a killed holder leaves nothing locked."""

import os
import signal
import subprocess
import sys

import pytest

from ssdd.artifact import LOCK, lock_folder
from ssdd.config import InputError
from ssdd.report import MARK, own_directory

HOLD = (
    "import sys, pathlib, time, ssdd.artifact\nwith ssdd.artifact.lock_folder(pathlib.Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n    time.sleep(100)\n"
)


def test_the_second_is_refused_and_the_first_leaves_nothing(tmp_path):
    with lock_folder(tmp_path):
        with pytest.raises(InputError, match=f"{tmp_path}: another process is writing"), lock_folder(tmp_path):
            raise AssertionError("two holders")
        assert (tmp_path / LOCK).is_file()  # the refused one removed nothing
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another process"), lock_folder(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    with lock_folder(tmp_path):
        pass


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path):
    """The folder is replaced while its old lock is held. The old holder must not remove the new holder's file."""
    with lock_folder(tmp_path):
        (tmp_path / LOCK).unlink()
        second = lock_folder(tmp_path)
        second.__enter__()
    assert (tmp_path / LOCK).is_file()
    with pytest.raises(InputError), lock_folder(tmp_path):
        pass
    second.__exit__(None, None, None)


def test_overwrite_does_not_empty_a_locked_folder(tmp_path):
    folder = tmp_path / "run"
    with own_directory(folder) as made:
        (made / MARK).touch()
        with pytest.raises(InputError, match="another process is writing"), own_directory(folder, overwrite=True):
            pass
        assert (made / MARK).is_file()
    with own_directory(folder, overwrite=True):
        assert [entry.name for entry in folder.iterdir()] == [LOCK]
