"""Filling a study's table: what a row needs is computed once, kept as a file, and measured on each set."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes

from ..artifact import DistilledSet, read_safetensors, wait_for_lock, write_atomically
from ..checkpoint import Checkpoints
from ..config import Event, InputError, Report, silent, versions
from ..data import CPU, ImageSet
from ..distillation import Distillation, Job, choose_images, distill, target_size, total_variation
from ..evaluation import Cell, Space, finetune, measure, measure_realism, pretrain_new, probes, why_no_probe
from ..models import Network, frozen, seeded, student
from ..teachers import Classifier, Representations, Teacher
from .baselines import baseline
from .kd import measure_kd
from .plan import SOURCE, Plan, Row
from .store import Cells, describe_differences
from .workers import Task, run_tasks

TeacherPair = tuple[Teacher | None, Representations]
"""A teacher, or None if only its representations are known, and its representations of the source."""


@dataclass(frozen=True)
class Study:
    """What all rows share: the images, the teachers, the cells, and the folder ``work`` of intermediate files."""

    data: ImageSet
    teachers: Mapping[Path | None, TeacherPair]
    """Teachers by path: None is the study's teacher, a path is the teacher of the rows that name it."""
    cells: Cells
    work: Path
    targets: Mapping[str, ImageSet] = field(default_factory=dict)
    cache: str | os.PathLike[str] | None = None
    """The folder for representations of known views; None keeps none."""
    classifiers: Mapping[str, Classifier] = field(default_factory=dict)
    """Name of a target -> the teacher of target-data-free distillation."""
    device: torch.device = CPU
    """Where networks train and run; probes run on the CPU."""

    def network(self, row: Row, outputs: int) -> Network:
        """Return the row's student, with random weights."""
        return student(row.settings.student, self.data.channels, self.data.size, outputs)

    def file(self, row: Row, seed: int, kind: str) -> Path:
        """Return the file in ``work`` for a row under a seed: "pairs", "network" or "snapshots"."""
        return self.work / f"{row.slug}.seed-{seed}.{kind}.safetensors"


Unit = tuple[Row, int, list[str]]
"""A row, a seed, and the sets whose cells are missing."""


def missing_cells(plan: Plan, names: Sequence[str], cells: Cells) -> list[Unit]:
    """Return the missing cells, seed 0 of all rows first. Raises :class:`InputError` if an existing cell has other
    settings, data or teacher."""
    existing = cells.read()
    for row, seed in plan.order():
        for name in names:
            if (row.name, seed, name) in existing:
                cells.check(row, existing[row.name, seed, name])
    return [(row, seed, [n for n in names if (row.name, seed, n) not in existing]) for row, seed in plan.order()]


def fill_study(plan: Plan, study: Study, workers: int = 1, report: Report = silent) -> None:
    """Compute every missing cell, seed 0 of all rows first. After a stop, the next call continues from there.

    Reports ``{"event": "study", "row", "seed", "set", "done", "of", "seconds", "left"}`` per finished cell. ``left``
    estimates the processor seconds of the remaining cells on one core; it is None if nothing is known yet.
    """
    names = plan.sets
    todo = missing_cells(plan, names, study.cells)
    existing, expected = study.cells.read(), [(row.name, seed, name) for row, seed in plan.order() for name in names]
    done = [existing[key] for key in expected if key in existing]

    def count_cells(event: Event) -> None:
        if event["event"] == "study-cell":
            done.append(event["cell"])
            cell = event["cell"]
            waiting = [(row, s, n) for row, s, missing in todo for n in missing if not _has(done, row, s, n)]
            report(
                {
                    "event": "study",
                    "row": cell["row"],
                    "seed": cell["seed"],
                    "set": cell["set"],
                    "done": len(done),
                    "of": len(expected),
                    "seconds": sum(cell["cpu_seconds"].values()),
                    "left": estimate_remaining(done, waiting),
                }
            )
        else:
            report(event)

    tasks = [
        Task(f"{row.name}, seed {seed}", fill_unit, (study, row, seed, missing))
        for row, seed, missing in todo
        if missing
    ]
    run_tasks(tasks, workers, count_cells)


def _has(cells: Sequence[dict[str, Any]], row: Row, seed: int, name: str) -> bool:
    return any(c["row"] == row.name and c["seed"] == seed and c["set"] == name for c in cells)


def estimate_remaining(done: Sequence[Mapping[str, Any]], waiting: Sequence[tuple[Row, int, str]]) -> float | None:
    """Estimate the processor seconds of the waiting cells: the row's own mean, or else the mean of the known rows."""
    known: dict[tuple[str, str], list[float]] = {}
    for cell in done:
        known.setdefault((cell["row"], cell["set"]), []).append(sum(cell["cpu_seconds"].values()))
    if not known:
        return None
    means = {key: sum(values) / len(values) for key, values in known.items()}
    typical = {
        name: sum(values) / len(values)
        for name in {key[1] for key in means}
        if (values := [mean for key, mean in means.items() if key[1] == name])
    }
    left = sum(means.get((row.name, name), typical.get(name, math.nan)) for row, _, name in waiting)
    return None if math.isnan(left) else left


def fill_unit(study: Study, row: Row, seed: int, missing: Sequence[str], report: Report = silent) -> None:
    """Compute one row under one seed: its pairs, its pre-trained network, then one cell per set of ``missing``.

    If another process computes this unit, wait for it; its cells are not computed again.
    """
    with wait_for_lock(study.work / f"{row.slug}.seed-{seed}.lock"):
        existing = study.cells.read()
        for key in [(row.name, seed, name) for name in missing if (row.name, seed, name) in existing]:
            study.cells.check(row, existing[key])
            report({"event": "study-cell", "cell": existing[key]})
        missing = [name for name in missing if (row.name, seed, name) not in existing]
        if missing:
            _compute(study, row, seed, missing, report)


def _compute(study: Study, row: Row, seed: int, missing: Sequence[str], report: Report) -> None:
    _, representations = study.teachers[row.teacher]
    clock = _Clock()
    seconds: dict[str, float] = {}
    pairs = row_pairs(study, row, seed, report)
    took = clock.lap()
    made = pairs is not None and row.source != "reused"  # pairs that another row made count there
    seconds["pairs"] = max(took, (pairs.metrics.get("cpu_seconds") or 0) if made and pairs is not None else 0)
    network = None if row.source == "teacher" else row_network(study, row, seed, pairs, report)
    seconds["pretrain"] = clock.lap()
    for name in missing:
        data = study.data if name == SOURCE else study.targets[name]
        cell = Cell(row.name, seed)
        if network is None:
            measure_teacher(study, row, name, cell, report)
        else:
            predicts = pairs is not None and pairs.target_kind == "representation"
            expected = representations.test if name == SOURCE and predicts else None
            measure(network, study.data.preprocessing, data, row.settings, cell, expected, pairs is not None, report)
        values: dict[str, Any] = {"error": cell.error, "probes": cell.probes, "finetuned": cell.finetuned}
        if network is not None and row.kd and name in study.classifiers:
            make = partial(study.network, row)
            guide = study.classifiers[name]
            values["kd"] = measure_kd(guide, network, pairs, data, make, row.settings, seed, report, study.device)
        seconds["measure"] = clock.lap()
        if row.distilled and pairs is not None:
            keys = ("steps", "loss", "untrained_share", "mean_age", "cpu_seconds", "realism")
            metrics = {key: pairs.metrics[key] for key in keys if key in pairs.metrics}  # older files lack realism
            values["distillation"] = metrics | {"total_variation": float(total_variation(pairs.images))}
        if pairs is not None:
            values["budget"] = {"images": len(pairs), "bytes": pairs.bytes, "steps": row.settings.pretrain.steps}
        values |= {"device": study.device.type} if study.device.type != "cpu" else {}
        stored = study.cells.append(row, seed, name, values | {"cpu_seconds": dict(seconds), "versions": versions()})
        report({"event": "study-cell", "cell": stored})
        seconds = {"pairs": 0.0, "pretrain": 0.0}


def row_pairs(study: Study, row: Row, seed: int, report: Report = silent) -> DistilledSet | None:
    """Return what the row's network is pre-trained on, from its file if an earlier call finished it."""
    data, (teacher, representations) = study.data, study.teachers[row.teacher]
    train = representations.train
    if row.source in ("nothing", "teacher"):
        return None
    if row.source == "full set":
        return baseline(data, torch.arange(len(data.x_train)), train, method=row.source, seed=seed)
    if row.source == "recomputed":
        assert row.of is not None and teacher is not None
        pairs = row_pairs(study, row.of, seed, report)
        assert pairs is not None
        with torch.no_grad():
            targets = teacher(teacher.preprocessing.normalise(pairs.images.to(study.device))).cpu()
        return replace(pairs, targets=targets, metrics={}, storage={}, stored={})
    if row.source == "reused":
        return row_pairs(study, row.origin, seed, report)
    if row.source == "imported":
        assert row.file is not None
        return DistilledSet.load(row.file)
    file = study.file(row, seed, "pairs")
    with wait_for_lock(file.with_suffix(".lock")):  # a "recomputed" row may need them at the same time
        if not file.is_file():
            _make_pairs(study, row, seed, file, report)
    pairs = DistilledSet.load(file)
    _check_same(file, {"distill": pairs.config}, {"distill": row.relevant["distill"]})
    # Use the memory layout that a new set has, as another alignment or order rounds differently. Real images have the
    # channels of a pixel side by side. Images with one channel are contiguous in both layouts.
    order = torch.channels_last if row.selected or pairs.images.shape[1] == 1 else torch.contiguous_format
    images = torch.empty_like(pairs.images, memory_format=order).copy_(pairs.images)
    return replace(pairs, images=images, targets=pairs.targets.clone())


def _make_pairs(study: Study, row: Row, seed: int, file: Path, report: Report) -> None:
    """Distil or select, and write ``file``."""
    data, train = study.data, study.teachers[row.teacher][1].train
    begun = time.process_time()
    if row.distilled:
        pairs, resumed = _distil(study, row, seed, report)
    else:
        targets = train if row.targets == "teacher" else data.one_hot()
        config = row.settings.distill
        job = Job(data, train, partial(study.network, row, targets.shape[1]), config, seed)
        rows = choose_images(row.source, job, targets, config.images)
        pairs, resumed = baseline(data, rows, train, method=row.source, seed=seed, targets=row.targets), False
        pairs.config = row.relevant["distill"]
    pairs.recipe = row.relevant["pretrain"]
    pairs.metrics["cpu_seconds"] = None if resumed else round(time.process_time() - begun, 1)
    pairs.save(file)
    _checkpoints(study, row, seed).clear()


def _distil(study: Study, row: Row, seed: int, report: Report) -> tuple[DistilledSet, bool]:
    """Return the row's distilled set, and True if the run resumed from a checkpoint. Its snapshots are kept as a
    file."""
    teacher, representations = study.teachers[row.teacher]
    resumed = False

    def notice_resume(event: Event) -> None:
        nonlocal resumed
        resumed = resumed or event["event"] == "resume"
        report(event)

    checkpoints = _checkpoints(study, row, seed)
    checkpoints.report = notice_resume
    outputs = target_size(row.settings.distill, study.data, representations.dimension)
    job = Job(
        study.data,
        representations.train,
        partial(study.network, row, outputs),
        row.settings.distill,
        seed,
        teacher,
        device=study.device,
    )
    run = distill(job, report=notice_resume, checkpoints=checkpoints, cache=study.cache)
    write_snapshots(run, study.file(row, seed, "snapshots"))
    run.result.metrics["realism"] = _realism(study, row, seed, run)
    return run.result, resumed


def _realism(study: Study, row: Row, seed: int, run: Distillation) -> dict[str, dict[str, float]]:
    """Measure how far the images of a run are from real ones: in pixels, to the teacher, and to a network that took no
    part."""
    teacher, representations = study.teachers[row.teacher]
    other = seeded(partial(study.network, row, representations.dimension), seed + 1_000_003)
    networks: dict[str, Space] = {"another network": frozen(other.to(study.device))}
    if teacher is not None:
        networks["teacher"] = teacher.accepting(study.data.preprocessing)
    spaces = {name: _on_device(network, study.device) for name, network in networks.items()}
    start = run.snapshots[0]
    return measure_realism(run.result.images[: len(start)], start, study.data, spaces)


def _on_device(network: Space, device: torch.device) -> Space:
    """Return ``network``, which runs on ``device``, as a function from and to main memory."""
    return lambda x: network(x.to(device)).cpu()


def _checkpoints(study: Study, row: Row, seed: int) -> Checkpoints:
    return Checkpoints(study.work / f"{row.slug}.seed-{seed}.checkpoints", device=study.device)


def write_snapshots(run: Distillation, file: Path) -> None:
    """Write the images of a run at some of its outer steps."""
    tensors = {f"{step:09d}": x.contiguous() for step, x in run.snapshots.items()}
    write_atomically(file, to_bytes(tensors, metadata={"ssdd": json.dumps({"format": "ssdd.snapshots"})}))


def read_snapshots(file: Path) -> dict[int, torch.Tensor]:
    """Read a file of :func:`write_snapshots`: outer step -> images, float32 [S, C, H, W] in pixels."""
    return {int(step): x for step, x in sorted(read_safetensors(file)[0].items())}


def row_network(study: Study, row: Row, seed: int, pairs: DistilledSet | None, report: Report = silent) -> Network:
    """Return the row's pre-trained network, from its file if an earlier call finished it."""
    make = partial(study.network, row)
    if pairs is None:
        return pretrain_new(None, make, row.settings, seed=seed, device=study.device)
    file = study.file(row, seed, "network")
    expected: dict[str, Any] = {
        key: row.relevant[key] for key in ("student", "pretrain", "distill", "targets", "pairs") if key in row.relevant
    }
    if file.is_file():
        tensors, meta = read_safetensors(file)
        _check_same(file, meta, expected)
        network = seeded(lambda: make(pairs.targets.shape[1]), seed)
        network.load_state_dict(tensors)
        network.to(study.device)
        return network.eval()
    network = pretrain_new(pairs, make, row.settings, seed=seed, report=report, device=study.device)
    tensors = {key: value.contiguous().cpu() for key, value in network.state_dict().items()}
    write_atomically(file, to_bytes(tensors, metadata={"ssdd": json.dumps(as_json(expected))}))
    return network


def measure_teacher(study: Study, row: Row, name: str, cell: Cell, report: Report = silent) -> None:
    """Measure the teacher's own representations by probes. Fine-tuning the teacher needs the network itself."""
    teacher, representations = study.teachers[row.teacher]
    data = study.data if name == SOURCE else study.targets[name]
    if name == SOURCE and representations.test is not None:
        cell.error, both = 0.0, (representations.train, representations.test)
    elif teacher is not None:
        both = teacher.represent(data.x_train), teacher.represent(data.x_test)
    else:
        raise InputError("teacher: a study that measures the teacher on targets needs the network, not a file")
    cell.probes = probes(both, data, row.settings, cell.seed, "features")
    if row.settings.finetune.share and teacher is not None and not why_no_probe(data):
        network = Network(teacher.module, both[0].shape[1], 1).to(study.device)
        config = row.settings.finetune
        cell.finetuned = finetune(network, teacher.preprocessing, data, config, seed=cell.seed, report=report)


def as_json(values: Any) -> Any:
    """Return ``values`` as a JSON reader returns them: tuples become lists."""
    return json.loads(json.dumps(values))


def _check_same(file: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differ = describe_differences(stored, expected)
    if differ:
        raise InputError(f"{file}: kept by a run with other settings ({'; '.join(differ[:3])}); move it away")


class _Clock:
    """Processor seconds, which do not count pauses and change little on a shared machine."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def lap(self) -> float:
        now = time.process_time()
        self.last, passed = now, round(now - self.last, 1)
        return passed
