"""Filling a study's table: what a row needs is made once, kept as a file, and measured set by set."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes

from ..artifact import DistilledSet, read_safetensors, write_atomically
from ..checkpoint import Checkpoints
from ..config import Event, InputError, Report, silent, versions
from ..data import ImageSet
from ..distill import distill, needs_teacher
from ..models import Network, seeded
from ..objective import total_variation
from ..select import baseline, kmeans_medoids, random_subset
from ..teachers import Representations, Teacher
from .cells import SOURCE, Cells, parted
from .finetune import finetune
from .plan import Plan, Row
from .rows import Cell, measure, pretrained, probes
from .study import Study, Task, run_tasks


@dataclass(frozen=True)
class Filling:
    """What every unit of work (a row under a seed, on all sets) shares. ``work``: the folder of what is kept."""

    study: Study
    targets: Mapping[str, ImageSet]
    cells: Cells
    work: Path
    teachers: Mapping[Path, tuple[Teacher, Representations]] = field(default_factory=dict)
    """Of the rows that have one of their own."""

    def of(self, row: Row) -> Study:
        """The study as one row sees it: with its settings, and its teacher."""
        if row.teacher is None:
            return replace(self.study, settings=row.settings)
        teacher, representations = self.teachers[row.teacher]
        return replace(self.study, settings=row.settings, teacher=teacher, representations=representations)


def fill(plan: Plan, filling: Filling, workers: int = 1, report: Report = silent) -> None:
    """Compute every cell that is not there, seed 0 of all rows first. Stopped at any moment, a call goes on from there.

    Reports ``{"event": "study", "row", "seed", "set", "done", "of", "seconds", "left"}`` a finished cell: ``left`` is
    an estimate of the seconds of computing that the rest needs on one core, None where nothing is known yet.
    """
    names = [SOURCE, *filling.targets]
    todo = [(row, seed, [n for n in names if filling.cells.read(row, seed, n) is None]) for row, seed in plan.order()]
    done = [cell for row, seed in plan.order() for n in names if (cell := filling.cells.read(row, seed, n)) is not None]
    of = len(names) * len(todo)

    def told(event: dict[str, Any]) -> None:
        if event["event"] == "study-cell":
            done.append(event["cell"])
            cell = event["cell"]
            waiting = [(row, s, n) for row, s, missing in todo for n in missing if not _has(done, row, s, n)]
            report({
                "event": "study", "row": cell["row"], "seed": cell["seed"], "set": cell["set"], "done": len(done),
                "of": of, "seconds": sum(cell["cpu_seconds"].values()), "left": remaining(done, waiting),
            })  # fmt: skip
        else:
            report(event)

    tasks = [
        Task(f"{row.name}, seed {seed}", fill_unit, (filling, row, seed, missing))
        for row, seed, missing in todo
        if missing
    ]
    run_tasks(tasks, workers, told)


def _has(cells: Sequence[dict[str, Any]], row: Row, seed: int, name: str) -> bool:
    return any(c["row"] == row.name and c["seed"] == seed and c["set"] == name for c in cells)


def remaining(done: Sequence[Mapping[str, Any]], waiting: Sequence[tuple[Row, int, str]]) -> float | None:
    """Seconds of computing that the waiting cells need: what the same row took, else the mean of the rows known."""
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


def fill_unit(filling: Filling, row: Row, seed: int, missing: Sequence[str], report: Report = silent) -> None:
    """One row under one seed: its pairs, its pre-trained network, then a cell a set of ``missing``."""
    study = filling.of(row)
    clock = _Clock()
    seconds: dict[str, float] = {}
    pairs = row_pairs(study, row, seed, filling.work, report)
    took = clock.lap()
    seconds["pairs"] = max(took, (pairs.metrics.get("cpu_seconds") or 0) if pairs is not None else 0)
    network = None if row.source == "teacher" else row_network(study, row, seed, pairs, filling.work, report)
    seconds["pretrain"] = clock.lap()
    for name in missing:
        data = study.data if name == SOURCE else filling.targets[name]
        cell = Cell(row.name, seed)
        if network is None:
            measure_teacher(study, data, name == SOURCE, cell)
        else:
            wanted = study.representations.test if name == SOURCE and pairs is not None else None
            measure(network, study.data.preprocessing, data, row.settings, cell, wanted, output=pairs is not None)
        seconds["measure"] = clock.lap()
        values = {"error": cell.error, "probes": cell.probes, "finetuned": cell.finetuned}
        if row.source == "krr-st" and pairs is not None:
            values["distillation"] = {
                key: pairs.metrics[key] for key in ("steps", "loss", "untrained_share", "mean_age", "cpu_seconds")
            } | {"total_variation": float(total_variation(pairs.images))}
        kept = filling.cells.write(row, seed, name, values | {"cpu_seconds": dict(seconds), "versions": versions()})
        report({"event": "study-cell", "cell": kept})
        seconds = {"pairs": 0.0, "pretrain": 0.0}


def row_pairs(study: Study, row: Row, seed: int, work: Path, report: Report = silent) -> DistilledSet | None:
    """What the row's network is pre-trained on, from its file where a call before this one finished it."""
    data, train, settings = study.data, study.representations.train, study.settings
    count = settings.distill.images
    if row.source in ("nothing", "teacher"):
        return None
    if row.source == "full set":
        return baseline(data, torch.arange(len(data.x_train)), train, method=row.source, seed=seed)
    if row.source == "recomputed":
        assert row.of is not None and study.teacher is not None
        pairs = row_pairs(replace(study, settings=row.of.settings), row.of, seed, work, report)
        assert pairs is not None
        with torch.no_grad():
            targets = study.teacher(study.teacher.preprocessing.normalise(pairs.images))
        return replace(pairs, targets=targets, metrics={})
    file = work / f"{row.slug}.seed-{seed}.pairs.safetensors"
    settings_here = row.relevant["distill"]
    if file.is_file():
        pairs = DistilledSet.load(file)
        _same(file, {"distill": pairs.config}, {"distill": settings_here})
        return pairs
    begun, resumed = time.process_time(), False
    checkpoints = Checkpoints(work / f"{row.slug}.seed-{seed}.checkpoints")

    def told(event: Event) -> None:
        nonlocal resumed
        resumed = resumed or event["event"] == "resume"
        report(event)

    checkpoints.report = told
    if row.source == "krr-st":
        teacher = study.teacher if needs_teacher(settings.distill) else None
        dimension = study.representations.dimension
        pairs = distill(
            data, train, lambda: study.make(dimension), settings.distill, seed=seed, teacher=teacher, report=told,
            checkpoints=checkpoints, cache=study.cache,
        ).result  # fmt: skip
    else:
        choose = {"random": lambda: random_subset(len(train), count, seed),
                  "k-means": lambda: kmeans_medoids(train, count, seed)}  # fmt: skip
        pairs = baseline(data, choose[row.source](), train, method=row.source, seed=seed)
        pairs.config = settings_here
    pairs.metrics["cpu_seconds"] = None if resumed else round(time.process_time() - begun, 1)
    pairs.save(file)
    checkpoints.clear()
    return pairs


def row_network(
    study: Study, row: Row, seed: int, pairs: DistilledSet | None, work: Path, report: Report = silent
) -> Network:
    """The row's pre-trained network, from its file where a call before this one finished it."""
    if pairs is None:
        return pretrained(None, study.make, study.settings, seed=seed)
    file = work / f"{row.slug}.seed-{seed}.network.safetensors"
    wanted: dict[str, Any] = {
        key: row.relevant[key] for key in ("student", "pretrain", "distill") if key in row.relevant
    }
    if file.is_file():
        tensors, meta = read_safetensors(file)
        _same(file, meta, wanted)
        network = seeded(lambda: study.make(pairs.targets.shape[1]), seed)
        network.load_state_dict(tensors)
        return network.eval()
    network = pretrained(pairs, study.make, study.settings, seed=seed, report=report)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_atomically(file, to_bytes(tensors, metadata={"ssdd": json.dumps(as_json(wanted))}))
    return network


def measure_teacher(study: Study, data: ImageSet, source: bool, cell: Cell) -> None:
    """The teacher's own representations, probed; fine-tuning it needs the network itself."""
    r, teacher = study.representations, study.teacher
    if source and r.test is not None:
        cell.error, both = 0.0, (r.train, r.test)
    elif teacher is not None:
        both = teacher.represent(data.x_train), teacher.represent(data.x_test)
    else:
        raise InputError("teacher: a study that measures the teacher on targets needs the network, not a file")
    cell.probes = probes(both, data, study.settings, cell.seed, "features")
    if study.settings.finetune.share and teacher is not None:
        network = Network(teacher.module, both[0].shape[1], 1)
        cell.finetuned = finetune(network, teacher.preprocessing, data, study.settings.finetune, seed=cell.seed)


def as_json(values: Any) -> Any:
    """Tuples as lists, as a reader of the file will find them."""
    return json.loads(json.dumps(values))


def _same(file: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = parted(stored, wanted)
    if found:
        raise InputError(f"{file}: kept by a run with other settings ({'; '.join(found[:3])}); move it away")


class _Clock:
    """Processor seconds, which a paused or a shared machine does not change much."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def lap(self) -> float:
        now = time.process_time()
        self.last, passed = now, round(now - self.last, 1)
        return passed
