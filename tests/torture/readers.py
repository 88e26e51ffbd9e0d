"""Damaged and hostile files for every reader: each is read, or refused by an InputError; nothing in it runs.

The files are mutated with their structure in mind: bytes, lengths, headers, JSON values, pickles that would run code.
If the package atheris is installed, ``python tests/torture/readers.py READER SECONDS [CORPUS]`` fuzzes one reader
guided by the coverage of ssdd, for SECONDS of this process's processor time. CORPUS is a folder for the files that
reached new code, from which another run goes on.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import ssdd
from ssdd.artifact.files import read_safetensors
from ssdd.artifact.published import read_tensor
from ssdd.checkpoint import Checkpoints
from ssdd.cli.resume import Run
from ssdd.config import InputError, read_settings_file
from ssdd.report.curves import read_events
from ssdd.studies.store import read_cells

FILES = 40
"""Files per case."""
MOST_MEMORY = 1 << 30
"""Bytes that reading one of these files, each below a megabyte, may add to the peak."""
CANARY = "torture-canary"
WORDS = (
    b"\x00",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b'"',
    b":",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"\n",
    b"\xef\xbb\xbf",
    b"../",
)
NUMBERS = (0, 1, 127, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


class Payload:
    """An object whose unpickling writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


Reader = tuple[str, Callable[[Path], Any]]


def prepare(place: Path) -> dict[str, Any]:
    """Return one good file per reader."""
    torch.manual_seed(0)
    pre = ssdd.Preprocessing((0.5,), (0.2,))
    pairs = ssdd.DistilledSet(torch.rand(3, 1, 8, 8), torch.randn(3, 4), pre)
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)
    picture, jpeg, npz, npy, pt = (io.BytesIO() for _ in range(5))
    Image.fromarray(images[0]).save(picture, "PNG")
    Image.fromarray(images[1]).save(jpeg, "JPEG")
    np.savez(npz, x_train=images, y_train=np.arange(6) % 2, x_test=images[:2], y_test=np.arange(2))
    np.save(npy, np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32))
    torch.save(torch.rand(3, 1, 8, 8), pt)
    pairs.save(place / "pairs.safetensors")
    teacher = ssdd.train_teacher(
        ssdd.ImageSet("few", torch.zeros(8, 8, 8, 1, dtype=torch.uint8), torch.zeros(2, 8, 8, 1, dtype=torch.uint8)),
        ssdd.TeacherConfig(epochs=1, widths=(4,), projector=4),
    )
    teacher.save(place / "teacher.safetensors")
    checkpoints = Checkpoints(place / "checkpoints", every=0)
    checkpoints.begin({"seed": 1})
    checkpoints.save(1, {"x": torch.ones(5), "step": 1, "order": [1, (2, 3)]})
    Run(ssdd.preset("digits"), {"data": "digits", "seed": 0}).write(place)
    rows = np.zeros((6, 3072), np.uint8)
    cifar = {b"data": rows, b"fine_labels": [0, 1, 0, 1, 0, 1]}
    study = Path(ssdd.__file__).with_name("studies") / "demo.toml"
    cell = {"row": "a", "seed": 0, "set": "source", "error": 0.5, "probes": {"features/0": 1.0}, "inputs": {}}
    row = {"row": "a", "settings": {"distill": {"lr": 0.1}}}
    log = [{"event": "distill", "step": 1, "steps": 2, "loss": 0.1}, {"event": "end"}]
    few = ssdd.ImageSet("few", torch.from_numpy(images), torch.from_numpy(images[:2]))

    def checkpoint(file: Path) -> Any:
        (file.parent / "c").mkdir(exist_ok=True)
        os.replace(file, file.parent / "c" / "distill-000000001.safetensors")
        return Checkpoints(file.parent / "c").begin({"seed": 1})

    def run(file: Path) -> Any:
        os.replace(file, file.parent / "run.json")
        return Run.read(file.parent)

    def folder(file: Path) -> Any:
        Image.fromarray(images[2]).save(file.with_name("another.png"))
        return ssdd.load_images(str(file.parent), 8, classes="none")

    good: dict[str, tuple[bytes, Reader]] = {
        "distilled set": ((place / "pairs.safetensors").read_bytes(), ("f.safetensors", ssdd.DistilledSet.load)),
        "teacher": ((place / "teacher.safetensors").read_bytes(), ("f.safetensors", ssdd.Teacher.load)),
        "safetensors": ((place / "pairs.safetensors").read_bytes(), ("f.safetensors", read_safetensors)),
        "checkpoint": (checkpoints.files()[0].read_bytes(), ("f.safetensors", checkpoint)),
        "pt": (pt.getvalue(), ("x_syn.pt", read_tensor)),
        "weights": (pt.getvalue(), ("w.pth", lambda f: ssdd.Teacher.named(str(f), pre))),
        "npz": (npz.getvalue(), ("f.npz", lambda f: ssdd.load_images(str(f)))),
        "npy": (npy.getvalue(), ("f.npy", lambda f: ssdd.read_representations(f, few))),
        "scores": (npy.getvalue(), ("f.npy", ssdd.read_scores)),
        "png": (picture.getvalue(), ("a/f.png", folder)),
        "jpeg": (jpeg.getvalue(), ("a/f.jpg", folder)),
        "cifar": (pickle.dumps(cifar), ("train", lambda f: ssdd.load_images(str(f.parent)))),
        "toml": (b"[distill]\nlr = 0.01\nimages = 5\n[teacher]\nwidths = [4, 8]\n", ("f.toml", read_settings_file)),
        "yaml": (b"distill:\n  lr: 0.01\nteacher:\n  widths: [4, 8]\n", ("f.yaml", read_settings_file)),
        "study": (study.read_bytes(), ("f.toml", ssdd.read_plan)),
        "run.json": ((place / "run.json").read_bytes(), ("f.json", run)),
        "cells": (lines([row, cell]), ("cells.jsonl", read_cells)),
        "log": (lines(log), ("log.jsonl", read_events)),
    }
    for content, (name, read) in good.values():  # every file is good before it is damaged
        if name == "w.pth":
            continue  # a tensor is no ResNet
        home = place / "good"
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if name == "train":
            (home / "test").write_bytes(content)
        read(file)
    return good


def lines(values: list[Any]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def mutate(rng: random.Random, content: bytes, canary: Path) -> bytes:
    """Return a damaged copy: up to four changes of bytes, lengths or structure."""
    if rng.random() < 0.06:
        return hostile(rng, canary)
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:at]
        elif kind == 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at] = rng.choice(WORDS) * rng.choice((1, 1, 3, 500))
        elif kind == 3:
            end = at + rng.choice((1, 8, 100, 4000))
            data[at:at] = data[at:end]
        elif kind == 4:
            del data[at : at + rng.choice((1, 4, 30, 1000))]
        elif kind == 5:
            number = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
            data[at : at + len(number)] = number
        elif kind == 6:
            data[:8] = struct.pack("<Q", rng.choice(NUMBERS))  # the length of a safetensors header
        elif kind == 7:
            other = rng.randrange(len(data)) if data else 0
            data[at : at + 16], data[other : other + 16] = data[other : other + 16], data[at : at + 16]
        else:
            data = bytearray(in_json(rng, bytes(data)))
    return bytes(data)


def in_json(rng: random.Random, content: bytes) -> bytes:
    """Change a number or a word between quotes, wherever it stands."""
    import re

    found = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"\n]{0,40}"|true|false|null', content[:20_000]))
    if not found:
        return content
    match = rng.choice(found)
    new = rng.choice(
        (b"-1", b"0", b"1e400", b"NaN", b'""', b"null", b"[]", b"{}", b"[[[[]]]]", b"99999999999999999999")
    )
    new = rng.choice((new, new, b"[" * 3000, b'"' + b"a" * 5000 + b'"', b'"\\ud800"'))
    return content[: match.start()] + new + content[match.end() :]


def hostile(rng: random.Random, canary: Path) -> bytes:
    """Return a pickle, or an archive with one, that would touch ``canary``."""
    payload = pickle.dumps(Payload(canary), protocol=rng.choice((0, 2, 4)))
    kind = rng.randrange(4)
    if kind == 0:
        return payload
    out = io.BytesIO()
    if kind == 1:
        torch.save(Payload(canary), out)
    elif kind == 2:
        np.savez(out, x_train=np.array([Payload(canary)], dtype=object))
    else:
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
            archive.writestr("x_train.npy", payload)
    return out.getvalue()


def read_one(name: str, content: bytes, read: Callable[[Path], Any], folder: Path, canary: Path) -> bool:
    """Read one damaged file; True if it was accepted. Raises AssertionError for whatever a reader must not do."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    if name == "train":
        (folder / "test").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(file)
        accepted = True
    except InputError:
        accepted = False
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_MEMORY, f"reading {len(content)} bytes took {grown / 1e6:.0f} MB"
    assert not canary.exists(), "a file ran code"
    return accepted


def case(rng: random.Random, shared: Any, folder: Path) -> dict[str, Any]:
    import warnings

    warnings.simplefilter("ignore")
    what = rng.choice(list(shared))
    content, (name, read) = shared[what]
    canary, accepted = folder / CANARY, 0
    for i in range(FILES):
        place = folder / str(i)
        place.mkdir()
        damaged = mutate(rng, content, canary)
        try:
            accepted += read_one(name, damaged, read, place, canary)
        except Exception as error:
            keep = Path(os.environ.get("TORTURE_KEEP", "/dev/null"))
            if keep.is_dir():
                (keep / f"{what}-{i}-{name.replace('/', '_')}").write_bytes(damaged)
            raise AssertionError(f"{what}, file {i}: {type(error).__name__}: {error}") from error
    return {"reader": what, "counts": {what: FILES, f"{what}: accepted": accepted}}


def own_functions() -> list[Any]:
    """Return the functions and methods of the modules that read files."""
    rooms = ("artifact", "data", "config", "checkpoint", "report", "studies", "teachers", "cli.resume")
    names = [name for name in sys.modules if name.startswith(tuple(f"ssdd.{room}" for room in rooms))]
    owners = [sys.modules[name] for name in names]
    owners += [v for m in list(owners) for v in vars(m).values() if isinstance(v, type) and v.__module__ in names]
    found = [getattr(v, "__func__", v) for owner in owners for v in vars(owner).values()]
    functions = {id(f): f for f in found if hasattr(f, "__code__") and f.__module__ in names}
    return list(functions.values())


def guided(what: str, seconds: int, place: Path, corpus: Path) -> None:
    """Fuzz one reader by atheris, guided by the coverage of ssdd, in this process, which it ends.

    The last line says how many files were read, how many of them were accepted, and in how many seconds.
    """
    import atheris

    good = prepare(place)
    content, (name, read) = good[what]
    count, accepted, start = 0, 0, time.process_time()
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "good").write_bytes(content)
    canary = place / CANARY
    for function in own_functions():
        atheris.instrument_func(function)

    def mutate_either_way(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return mutate(rng, data, canary)[:most] if rng.random() < 0.5 else atheris.Mutate(data, most)

    def one(data: bytes) -> None:
        nonlocal count, accepted
        spent = time.process_time() - start
        if spent >= seconds:
            shutil.rmtree(place)
            print(f"{what}: {count} files, {accepted} accepted, {spent:.0f} s of processor time", flush=True)
            os._exit(0)  # libFuzzer has no limit of processor time
        folder = place / "one"
        folder.mkdir(exist_ok=True)
        count += 1
        accepted += read_one(name, data, read, folder, canary)

    arguments = [sys.argv[0], "-rss_limit_mb=4000", "-timeout=60", str(corpus)]
    atheris.Setup(arguments, one, custom_mutator=mutate_either_way)
    atheris.Fuzz()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as where:
        place = Path(where)
        guided(sys.argv[1], int(sys.argv[2]), place, Path(sys.argv[3]) if len(sys.argv) > 3 else place / "corpus")
