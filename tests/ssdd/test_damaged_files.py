"""Damaged files that the campaign of faults found: each is refused by an InputError, in a line."""

import io
import zipfile

import numpy as np
import pytest
import torch

import ssdd
from ssdd.cli.resume import Run
from ssdd.config import InputError, read_settings_file
from ssdd.studies.store import read_cells

DEEP = b"[" * 100_000


def header(text):
    """A .npy file with this header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return out.getvalue()


FILES = {
    "deep.toml": (b"[distill]\nlr = " + DEEP, read_settings_file),
    "deep.yaml": (b"distill: " + DEEP, read_settings_file),
    "deep study.toml": (b"data = " + DEEP, ssdd.read_plan),
    "run.json": (DEEP, lambda file: Run.read(file.parent)),
    "cells.jsonl": (DEEP + b"\n", read_cells),
    "open.npy": (header(b"{'descr': (\n"), ssdd.read_scores),
    "huge.npy": (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % 10**30), ssdd.read_scores),
    "bytes.npz": (archive(x_train=b"no array"), lambda file: ssdd.load_images(str(file))),
    "open.npz": (archive(x_train=header(b"{'descr': (\n")), lambda file: ssdd.load_images(str(file))),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused(name, tmp_path):
    content, read = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name.partition(".")[0]) as refused:
        read(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_representations_with_an_open_header_are_refused(tmp_path):
    data = ssdd.ImageSet("few", *(torch.zeros(2, 8, 8, 1, dtype=torch.uint8),) * 2)
    np.save(tmp_path / "good.npy", np.zeros((4, 3), np.float32))
    assert ssdd.read_representations(tmp_path / "good.npy", data).dimension == 3
    (tmp_path / "r.npy").write_bytes(header(b"{'descr': (\n"))
    with pytest.raises(InputError, match="r.npy: not a readable .npy"):
        ssdd.read_representations(tmp_path / "r.npy", data)
