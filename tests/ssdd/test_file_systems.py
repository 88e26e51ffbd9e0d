"""File systems and environments that refuse common operations: a run there continues and reports what it omits."""

import errno
import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssdd.cli
from ssdd.artifact import DistilledSet, Preprocessing, check_writable, export, lock_folder, write_atomically
from ssdd.config import InputError
from ssdd.data import cache_directory, load_images, stream
from ssdd.parallel import join_processes, local_rank, world_size
from ssdd.teachers import Representations, represent, write_representations

PAIRS = DistilledSet(torch.rand(2, 1, 4, 4), torch.rand(2, 3), Preprocessing((0.5,), (0.5,)))


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(stream, "_logged", set())


def refuse(number):
    def call(*arguments, **names):
        raise OSError(number, os.strerror(number))

    return call


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(params=[0o077, 0o002, 0o022])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_decides_who_may_read(tmp_path, umask, teacher, few):
    with lock_folder(tmp_path):
        assert mode(tmp_path / ".lock") == 0o666 & ~umask
    assert mode(write_atomically(tmp_path / "a", b"x")) == 0o666 & ~umask
    assert mode(write_atomically(tmp_path / "a", b"y")) == 0o666 & ~umask
    export(PAIRS, tmp_path / "folder")
    assert mode(tmp_path / "folder") == 0o777 & ~umask
    for file in (p for p in (tmp_path / "folder").rglob("*") if p.is_file()):
        assert mode(file) == 0o666 & ~umask, file
    represent(teacher, few, tmp_path / "cache")
    [kept] = (tmp_path / "cache").iterdir()
    assert mode(kept) == 0o666 & ~umask


def test_nothing_needs_to_change_a_mode(tmp_path, monkeypatch):
    for name in ("chmod", "fchmod", "lchmod"):
        monkeypatch.setattr(os, name, refuse(errno.EPERM), raising=False)
    PAIRS.save(tmp_path / "pairs.safetensors")
    export(PAIRS, tmp_path / "folder")
    assert len(DistilledSet.load(tmp_path / "folder" / "distilled.safetensors")) == 2


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_fsync(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(number))
    assert write_atomically(tmp_path / "a", b"x").read_bytes() == b"x"
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_atomically(tmp_path / "a", b"y")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a", b"x")]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_fallocate(tmp_path, monkeypatch, teacher, few, number):
    monkeypatch.setattr(os, "posix_fallocate", refuse(number))
    monkeypatch.setattr(stream, "ZEROS", 1000)
    kept = represent(teacher, few, tmp_path)
    [file] = tmp_path.iterdir()
    assert file.stat().st_blocks * 512 >= file.stat().st_size  # no hole that a full disk could not fill later
    assert torch.equal(kept.train, teacher.represent(few.x_train))


def photos(folder):
    g = np.random.default_rng(0)
    folder.mkdir()
    for i in range(10):
        Image.fromarray(g.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_cache_that_cannot_be_written_is_skipped(tmp_path, monkeypatch, teacher, few, caplog):
    (tmp_path / "file").write_text("no folder can be made in here")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "ssdd"):
        for _ in range(2):
            found = represent(teacher, few, cache_directory())
        mapped = load_images(photos(tmp_path / "photos"), memory=100)
    assert torch.equal(found.train, teacher.represent(few.x_train))
    assert torch.equal(found.test, teacher.represent(few.x_test))
    assert torch.equal(mapped.x_train, load_images(tmp_path / "photos").x_train)
    output = [record.getMessage() for record in caplog.records]
    assert len(output) == 2 and all(str(tmp_path / "file") in line and "XDG_CACHE_HOME" in line for line in output)
    assert "representations" in output[0] and "decoded images" in output[1]
    assert list((tmp_path / "tmp").iterdir()) == []  # temporary files have lost their names, not their content
    monkeypatch.setattr(stream, "_new_array", refuse(errno.ENOSPC))
    with pytest.raises(InputError, match="no place for .* XDG_CACHE_HOME"):
        represent(teacher, few, tmp_path / "other")


def test_no_home_folder(tmp_path, monkeypatch, caplog):
    def no_home(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    with caplog.at_level(logging.WARNING, "ssdd"):
        folder = cache_directory()
        assert cache_directory() == folder == tmp_path / f"ssdd-cache-{os.getuid()}"
    assert [str(folder) in record.getMessage() for record in caplog.records] == [True]
    folder.symlink_to(tmp_path)  # as another user could have left it
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        cache_directory()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Places that nothing can be written to, with the message about each. A user without root's rights needs no
    mount, but root may write anywhere: for root ``os.access`` answers as it does to other users."""
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir()
    (tmp_path / "full").mkdir()
    access, statvfs = os.access, os.statvfs

    def full(place):
        about = statvfs(place)
        if Path(place).name != "full":
            return about
        return type(about)((*about[:3], 9, 9, *about[5:]))  # blocks that are free, for root and for others

    monkeypatch.setattr(os, "access", lambda place, how: Path(place).name != "closed" and access(place, how))
    monkeypatch.setattr(os, "statvfs", full)
    return {
        tmp_path / "file" / "deeper": f"{tmp_path / 'file'} is a file, so",
        tmp_path / "closed": rf"nothing can be written in {tmp_path / 'closed'} \(permission denied\)",
        tmp_path / "full": "kB of free space, which is too little; make room",
    }


COMMANDS = {
    "demo": "demo -d nowhere -o OUT/run",
    "distill": "distill -d nowhere -o OUT/run",
    "teacher": "teacher -d nowhere -o OUT/t.safetensors",
    "train-classifier": "train-classifier -d nowhere -o OUT/c.safetensors",
    "kd": "kd nowhere -t nowhere -d nowhere -o OUT/s.safetensors",
    "pretrain": "pretrain nowhere -o OUT/w.safetensors",
    "embed": "embed -d nowhere -t nowhere -o OUT/e.npy",
    "report": "report nowhere -o OUT/r.html",
    "import": "import nowhere nowhere -d nowhere -o OUT/i.safetensors",
    "show": "show PAIRS -o OUT/s.png",
    "export": "export PAIRS -o OUT/folder",
    "study": "study STUDY -o OUT/study",
    "study --work": "study STUDY --work OUT/work",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_cannot_be_written_is_an_error_before_anything_is_read(places, command, tmp_path, monkeypatch):
    (tmp_path / "study.toml").write_text('preset = "digits"\ndata = "nowhere"\n[[row]]\nname = "r"\nfrom = "random"\n')
    names = {"PAIRS": PAIRS.save(tmp_path / "pairs.safetensors"), "STUDY": tmp_path / "study.toml"}
    before = sorted(tmp_path.rglob("*"))
    for place, message in places.items():
        words = [str(names.get(word, word)).replace("OUT", str(place)) for word in command.split()]
        with pytest.raises(InputError, match=message):
            ssdd.cli.run(words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_can_be_replaced_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    for name in ("file", "link", "new", "new/deeper"):
        check_writable(tmp_path / name)


def test_representations_that_the_user_asked_for_are_written_where_he_said(tmp_path, few):
    """Not in a folder for temporary files, as those of the cache are."""
    (tmp_path / "file").write_text("")
    found = Representations(torch.rand(len(few.x_train), 3), torch.rand(len(few.x_test), 3))
    with pytest.raises(InputError, match=r"file: no place for [\d,]+ bytes of representations .* choose another place"):
        write_representations(tmp_path / "file" / "e.npy", few, found)


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def launcher(monkeypatch, **variables):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": " "},
        {"WORLD_SIZE": "1"},
        {"LOCAL_RANK": "3"},
        {"WORLD_SIZE": "", "RANK": "", "LOCAL_RANK": ""},
    ],
)
def test_launcher_variables_that_name_one_process(monkeypatch, variables):
    launcher(monkeypatch, **variables)
    assert world_size() == 1 and local_rank() is None
    with join_processes() as processes:
        assert processes.size == 1


def test_launcher_variables_of_torchrun(monkeypatch):
    launcher(monkeypatch, **TORCHRUN)
    assert world_size() == 2 and local_rank() == 1


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number from 1, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected a whole number from 1, got '0'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE: expected a whole number from 1, got '-1'"),
        ({"LOCAL_RANK": ""}, "WORLD_SIZE is 2, but LOCAL_RANK is not set"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT: expected a whole number from 0, got 'x'"),
        ({"MASTER_ADDR": "", "RANK": ""}, "WORLD_SIZE is 2, but RANK, MASTER_ADDR are not set"),
        ({"RANK": "2"}, "RANK: expected a whole number below WORLD_SIZE = 2, got 2"),
        ({"RANK": "first"}, "RANK: expected a whole number from 0, got 'first'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: expected a whole number from 0, got 'x'"),
    ],
)
def test_launcher_variables_set_in_part(monkeypatch, changes, named):
    launcher(monkeypatch, **(TORCHRUN | changes))
    with pytest.raises(InputError, match=named) as error, join_processes():
        local_rank()
    assert "torchrun" in str(error.value) and "unset WORLD_SIZE" in str(error.value)


def test_the_program_says_which_launcher_variable_is_wrong(monkeypatch, capsys):
    launcher(monkeypatch, WORLD_SIZE="2", RANK="0")
    monkeypatch.setattr("sys.argv", ["ssdd", "settings", "digits"])
    with pytest.raises(SystemExit) as end:
        ssdd.cli.main()
    output = capsys.readouterr()
    assert end.value.code == 1 and output.out == ""
    assert output.err.startswith("error: WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set")
    launcher(monkeypatch, WORLD_SIZE=" ")
    ssdd.cli.main()
    assert "[distill]" in capsys.readouterr().out
