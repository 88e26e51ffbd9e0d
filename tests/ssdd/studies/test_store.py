"""The file of a study's cells: complete lines from several processes, settings once per row, and damaged or foreign
lines."""

import json
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ssdd.config import InputError, preset, with_settings
from ssdd.studies import CELLS, SOURCE, Cells, Plan, Row, missing_cells, read_cells, read_plan
from ssdd.teachers import Teacher

ROW = Row("KRR-ST", "krr-st", preset("digits"), 2)
OTHER = Row("k-means", "k-means", preset("digits"), 2)
VALUES = {"error": 0.1, "probes": {"features/0": 97.5}, "finetuned": None, "cpu_seconds": {"pairs": 1.0}}
INPUTS = {SOURCE: "s", "teacher": "t", "Cars": "c"}


@pytest.fixture
def cells(tmp_path):
    return Cells(tmp_path / "study" / CELLS, INPUTS)


def lines(cells):
    return [json.loads(line) for line in cells.file.read_bytes().splitlines()]


def test_settings_stand_once_per_row_and_again_only_if_they_change(cells):
    for row in (ROW, OTHER):
        for seed in range(2):
            cells.append(row, seed, SOURCE, VALUES)
    assert ["settings" in line for line in lines(cells)] == [True, False, False, True, False, False]
    changed = replace(ROW, settings=with_settings(ROW.settings, {"distill.ridge": "0.5"}))
    cells.append(changed, 0, "Cars", VALUES)
    cells.append(OTHER, 0, "Cars", VALUES)
    found = cells.read()
    assert len(lines(cells)) == 9 and len(found) == 6
    assert found["KRR-ST", 1, SOURCE]["settings"]["distill"]["ridge"] == 1e-6
    assert found["KRR-ST", 0, "Cars"]["settings"]["distill"]["ridge"] == 0.5
    cells.check(OTHER, found["k-means", 0, "Cars"])
    with pytest.raises(InputError, match=r"KRR-ST, seed 0, Cars .*distill\.ridge: 0\.5 there, 1e-06 here"):
        cells.check(ROW, found["KRR-ST", 0, "Cars"])


def test_cells_are_read_as_written(cells):
    kept = cells.append(ROW, 1, "Cars", VALUES)
    assert read_cells(cells.file) == {("KRR-ST", 1, "Cars"): kept}
    assert kept["error"] == 0.1 and kept["from"] == "krr-st" and kept["inputs"] == INPUTS
    assert kept["settings"]["evaluate"]["labels"] == [1, 5, 20, 0]


def test_a_cell_is_kept_once(cells):
    cells.append(ROW, 0, SOURCE, VALUES)
    before = cells.file.read_bytes()
    cells.append(ROW, 0, SOURCE, VALUES | {"error": 0.2})  # from a process that did not know about the first
    assert cells.file.read_bytes() == before


def test_no_file_is_no_cells(cells):
    assert cells.read() == {} and not cells.file.exists()


@pytest.mark.parametrize("torn", [b"{", b'{"row":"KRR-ST","seed":1,"set":"source","probes":{},"inputs":{}}'])
def test_a_torn_last_line_is_ignored_and_the_next_cell_takes_its_place(cells, torn):
    cells.append(ROW, 0, SOURCE, VALUES)
    whole = cells.file.read_bytes()
    cells.file.write_bytes(whole + torn)
    assert list(cells.read()) == [("KRR-ST", 0, SOURCE)]
    cells.append(ROW, 1, SOURCE, VALUES)
    assert list(cells.read()) == [("KRR-ST", 0, SOURCE), ("KRR-ST", 1, SOURCE)]
    assert cells.file.read_bytes().startswith(whole + b'{"row"') and len(lines(cells)) == 3


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 3: not a readable cell"),
        ("[1]", "line 3: expected a cell of a study"),
        ('{"row": "KRR-ST", "seed": 0}', "line 3: expected a cell of a study, with row, seed"),
        ('{"row": "new", "seed": 0, "set": "source", "probes": {}, "inputs": {}}', "settings are not above it"),
    ],
)
def test_a_damaged_line_is_named(cells, line, message):
    cells.append(ROW, 0, SOURCE, VALUES)
    cells.file.write_bytes(cells.file.read_bytes() + line.encode() + b"\n")
    with pytest.raises(InputError, match=message):
        cells.read()


def write(file, number, count, barrier):
    """Append the cells of one row, in a process of its own."""
    cells, row = Cells(Path(file), INPUTS), replace(ROW, name=f"row {number}")
    barrier.wait()
    for seed in range(count):
        cells.append(row, seed, SOURCE, VALUES)


def test_processes_append_whole_lines_at_the_same_time(cells):
    context, count = multiprocessing.get_context("fork"), 40
    barrier = context.Barrier(4)
    writers = [context.Process(target=write, args=(str(cells.file), i, count, barrier)) for i in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
        assert process.exitcode == 0
    assert set(cells.read()) == {(f"row {i}", seed, SOURCE) for i in range(4) for seed in range(count)}
    assert len(lines(cells)) == 4 * (count + 1)


def test_a_killed_writer_leaves_what_others_can_read_and_go_on_from(cells):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        barrier = context.Barrier(1)
        process = context.Process(target=write, args=(str(cells.file), attempt, 10**6, barrier))
        process.start()
        end = time.monotonic() + 60
        while not any(row == f"row {attempt}" for row, _, _ in cells.read()):
            assert process.is_alive() and time.monotonic() < end
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        cells.append(ROW, attempt, SOURCE, VALUES)
    found = cells.read()
    assert all(("KRR-ST", attempt, SOURCE) in found for attempt in range(5))


def test_a_full_disk_leaves_whole_lines(cells):
    cells.append(ROW, 0, SOURCE, VALUES)
    before, limits = cells.file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        with pytest.raises(OSError):
            cells.append(ROW, 1, SOURCE, VALUES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert cells.file.read_bytes() == before


def test_only_cells_that_are_not_there_are_planned(cells):
    plan = Plan("A study", (ROW, OTHER))
    names = [SOURCE, "Cars"]
    assert [(row.name, seed, missing) for row, seed, missing in missing_cells(plan, names, cells)] == [
        ("KRR-ST", 0, names),
        ("k-means", 0, names),
        ("KRR-ST", 1, names),
        ("k-means", 1, names),
    ]
    cells.append(OTHER, 0, "Cars", VALUES)
    assert [(row.name, seed) for row, seed, missing in missing_cells(plan, names, cells) if missing == [SOURCE]] == [
        ("k-means", 0)
    ]
    with pytest.raises(InputError, match="teacher: t there, u here"):
        missing_cells(plan, names, Cells(cells.file, INPUTS | {"teacher": "u"}))


@pytest.mark.parametrize("name, count", [("cifar10", 246), ("cifar10/selection", 4), ("teachers", 48)])
def test_a_committed_study_plans_none_of_its_cells_again(root, name, count):
    folder = root / "docs" / "results" / name
    plan, found = read_plan(folder / "study.toml"), read_cells(folder / CELLS)
    assert len(found) == count
    # The images are not committed, but the cells have their fingerprints. The teachers are committed.
    inputs = {key: print_ for cell in found.values() for key, print_ in cell["inputs"].items() if key != "teacher"}
    inputs["teacher"] = Teacher.load(root / "docs" / "results" / "cifar10" / "teacher.safetensors").key()
    own = {row.teacher for row in plan.rows if row.teacher is not None}
    keys = {path: Teacher.load(path).key() for path in own}
    names = [SOURCE, *sorted(inputs.keys() - {SOURCE, "teacher"})]
    todo = missing_cells(plan, names, Cells(folder / CELLS, inputs, keys))
    every = {(row.name, seed, name) for row, seed in plan.order() for name in names}
    assert {(row.name, seed, name) for row, seed, missing in todo for name in missing} == every - found.keys()
