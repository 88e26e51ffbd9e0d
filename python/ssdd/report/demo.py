"""The demonstration: teacher, distillation under several seeds, every row of the table, pictures, all in one folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifact import write_atomically
from ..config import Diverged, InputError, Preset, Report, as_dict, preset, silent, versions
from ..data import ImageSet, load_images
from ..evaluate import Cell, Study, Task, distil_seed, other_rows, ready, run_tasks
from ..teachers import Representations, Teacher, read_representations, represent, train_teacher
from .directory import MARK, own_directory
from .log import JsonLines, both
from .pictures import contact_sheet, coverage, images_over_steps, loss_curves
from .table import as_json, markdown, sentences, table


def demo(
    out: str | os.PathLike[str],
    *,
    data: ImageSet | None = None,
    settings: Preset | None = None,
    seeds: Sequence[int] = range(5),
    teacher: Teacher | None = None,
    representations: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    command: str = "",
    report: Report = silent,
) -> dict[str, Any]:
    """Run everything on ``data`` (default: digits) and write it to the folder ``out``; returns what results.json holds.

    Files: ``teacher.safetensors``, ``seed-N.safetensors`` (the artifacts), ``contact-sheet.png``,
    ``images-over-steps.png``, ``loss.png``, ``coverage.png``, ``results.json``, ``results.md``, ``log.jsonl``.
    ``teacher``: a network of yours instead of a new one; ``representations``: a file of yours instead of any.
    ``workers`` (default: the cores this process may use) changes the time, never the numbers. Worker processes are
    spawned: in a script, call this from under ``if __name__ == "__main__":``.
    """
    settings = settings or preset("digits")
    data = data or load_images("digits")
    seeds = list(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds: expected different whole numbers, at least one, got {seeds}")
    if teacher is not None and representations is not None:
        raise InputError("teacher, representations: expected one of the two")
    if not settings.distill.steps:
        raise InputError("steps: expected at least 1, got 0")
    if settings.distill.images > len(data.x_train):
        raise InputError(
            f"images: expected at most {len(data.x_train)}, the number of training images of {data.name}, "
            f"got {settings.distill.images}"
        )
    given = read_representations(representations, data) if representations is not None else None
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    ready(data, settings, teacher, given)
    begun = time.monotonic()
    with own_directory(out, overwrite) as folder, JsonLines(folder / MARK) as log:
        report = both(log, report)
        report({"event": "start", "settings": as_dict(settings), "seeds": seeds, "versions": versions()})
        if given is None:
            [(teacher, given)] = run_tasks([Task("teacher", teach, (data, settings, folder, teacher))], workers, report)
        taught = time.monotonic()
        study = Study(data, given, settings, teacher)
        tasks = [Task(f"seed {s}", distil_seed, (study, s, folder / f"seed-{s}.safetensors")) for s in seeds]
        tasks += [Task(f"baselines {s}", other_rows, (study, s)) for s in seeds]
        try:
            results = run_tasks(tasks, workers, report)
        except Diverged as error:
            keep_partial(error, folder)
            raise
        runs = results[: len(seeds)]
        cells: list[Cell] = [cell for _, cell in runs] + [cell for found in results[len(seeds) :] for cell in found]
        for run, _ in runs:
            report({"event": "result", "seed": run.result.seed, **run.result.metrics})
        first = runs[0][0]
        contact_sheet(first.result.images, folder / "contact-sheet.png")
        images_over_steps(first.snapshots, folder / "images-over-steps.png")
        loss_curves({run.result.seed: run.losses for run, _ in runs}, folder / "loss.png")
        coverage(given.train, first.result.targets, folder / "coverage.png", data.y_train)
        found = {
            "data": {"name": data.name, "train": len(data.x_train), "test": len(data.x_test), "size": list(data.size)},
            "command": command, "settings": as_dict(settings), "seeds": seeds, "versions": versions(),
            "pool": {str(run.result.seed): {k: run.result.metrics[k] for k in ("untrained_share", "mean_age")}
                     for run, _ in runs},
            "seconds": {"teacher": round(taught - begun, 1), "total": round(time.monotonic() - begun, 1)},
            "workers": workers,
            **as_json(cells),
        }  # fmt: skip
        write_atomically(folder / "results.json", (json.dumps(found, indent=1) + "\n").encode())
        write_atomically(folder / "results.md", summary(found, cells).encode())
        report({"event": "end", "seconds": found["seconds"]})
    return found


def teach(
    data: ImageSet, settings: Preset, folder: Path | None, teacher: Teacher | None, report: Report = silent
) -> tuple[Teacher, Representations]:
    """A teacher (trained here and kept in ``folder``, or the one given) with the representations of all images."""
    if teacher is None:
        teacher = train_teacher(data, settings.teacher, report)
        if folder is not None:
            teacher.save(folder / "teacher.safetensors")
    return teacher, represent(teacher, data)


def keep_partial(error: Diverged, folder: Path) -> None:
    """Write what a run that diverged had distilled by then to ``partial.safetensors``, and say so in the message."""
    if error.partial is not None:
        error.partial.save(folder / "partial.safetensors")
        error.args = (f"{error}. Kept: {folder / 'partial.safetensors'}",)


def summary(found: dict[str, Any], cells: Sequence[Cell]) -> str:
    """results.md: the table, how to read it, and what it says."""
    data, settings, n = found["data"], found["settings"], len(found["seeds"])
    share = settings["distill"]["images"] / data["train"]
    pool = list(found["pool"].values())
    lines = [
        f"# {data['name']}: {settings['distill']['images']} distilled images ({share:.1%} of {data['train']:,})",
        "",
        markdown(table(cells)),
        "",
        f"Mean ± standard error over {n} seed{'s' if n > 1 else ''} (a seed: one draw of the initial subset, one "
        "distillation, one pre-training; the teacher is fixed). Representation error: squared error on the "
        f"{data['test']} held-out images as a fraction of the teacher's variance; 1 is what predicting the mean "
        "gives. Probes: accuracy in percent of a linear probe on the features / on the predicted representation. "
        "Every row has the same network and pre-training recipe.",
        "",
        *(f"- {sentence}" for sentence in sentences(cells)),
        f"- Pool: {sum(p['untrained_share'] for p in pool) / n:.1%} of the networks met were untrained, their mean age "
        f"{sum(p['mean_age'] for p in pool) / n:.0f} steps (pool_counter={settings['distill']['pool_counter']!r}).",
        f"- {found['seconds']['total']:.0f} s with {found['workers']} worker process"
        f"{'es' if found['workers'] > 1 else ''} of one thread, the teacher included.",
    ]
    if found["command"]:
        lines += ["", f"Made by `{found['command']}`."]
    return "\n".join(lines) + "\n"
