"""The demonstration: teacher, distillation under several seeds, every row of the table, pictures, all in one folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..artifact import DistilledSet, write_atomically, write_card
from ..config import Diverged, Event, Report, as_dict, in_float32, silent, versions
from ..studies import SOURCE, Demonstration, Plan, Row, Study, read_snapshots
from .curves import read_events
from .directory import MARK, own_directory, resume_directory, write_json
from .html import try_report
from .log import JsonLines, both
from .material import keep_material
from .pictures import contact_sheet, coverage, draw_each, images_over_steps, loss_curves
from .tables import KRR_ST, Cell, as_json, markdown, sentences, table


@in_float32
def demo(
    out: str | os.PathLike[str],
    what: Demonstration | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    command: str = "",
    report: Report = silent,
) -> dict[str, Any]:
    """Compute the demonstration and write it to a folder.

    Files: ``teacher.safetensors``, ``seed-N.safetensors`` (the artifacts), ``contact-sheet.png``,
    ``images-over-steps.png``, ``loss.png``, ``coverage.png``, ``cells.jsonl`` (the study), ``results.json``,
    ``results.md``, ``log.jsonl``, ``report.html`` (with ``seed-N.report.safetensors``), which shows all of it. Worker
    processes import the script: in one, call this under ``if __name__ == "__main__":``.

    Args:
        out: the folder.
        what: images, settings, seeds and teacher. Default: digits.
        workers: number of worker processes; it changes the time, never the numbers. Default: the cores this process may
            use.
        overwrite: replace an earlier run in ``out``. Default False.
        resume: continue the run in ``out``, which began with the same arguments; finished parts are not computed again.
            Default False.
        command: the command to name in results.md. Default "".
        report: receives all events. Default: nothing is reported.

    Returns:
        The content of results.json.
    """
    what = what or Demonstration()
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    data, settings, plan = what.data, what.settings, what.plan()
    begun = time.monotonic()
    losses: dict[str, list[tuple[int, float]]] = {}

    def keep_losses(event: Event) -> None:
        if event["event"] == "distill":
            losses.setdefault(event["task"], []).append((event["step"], event["loss"]))

    say = report
    if resume:
        for event in read_events(Path(out) / MARK):
            keep_losses(event)
    with ExitStack() as stack:
        folder = Path(out)
        stack.enter_context(resume_directory(folder) if resume else own_directory(folder, overwrite))
        log = stack.enter_context(JsonLines(folder / MARK, append=resume))
        report = both(log, report, keep_losses)
        seeds = list(range(what.seeds))
        start = {"settings": as_dict(settings), "seeds": seeds, "versions": versions(), "data": data.name}
        report({"event": "start", "command": command, **start})
        pair = what.teach(folder, report)
        trained = time.monotonic()
        try:
            study = what.fill(pair, folder, workers, report)
        except Diverged as error:
            keep_partial(error, folder)
            raise
        cells = _cells(plan, study)
        runs = [_artifact(plan, study, seed, folder) for seed in seeds]
        for run in runs:
            report({"event": "result", "seed": run.seed, **run.metrics})
        results = {
            "data": {"name": data.name, "train": len(data.x_train), "test": len(data.x_test), "size": list(data.size)},
            "command": command,
            "settings": as_dict(settings),
            "seeds": seeds,
            "versions": versions(),
            "pool": {str(run.seed): {k: run.metrics[k] for k in ("untrained_share", "mean_age")} for run in runs},
            "seconds": {"teacher": round(trained - begun, 1), "total": round(time.monotonic() - begun, 1)},
            "workers": workers,
            **as_json(cells),
        }
        write_json(folder / "results.json", results)
        write_atomically(folder / "results.md", summary(results, cells).encode())
        distilled = _row(plan)
        draw_each(
            {
                folder / "contact-sheet.png": lambda file: contact_sheet(runs[0].images, file),
                folder / "images-over-steps.png": lambda file: images_over_steps(
                    read_snapshots(study.file(distilled, 0, "snapshots")), file
                ),
                folder / "loss.png": lambda file: loss_curves(
                    {s: losses[f"{distilled.name}, seed {s}"] for s in seeds}, file
                ),
                folder / "coverage.png": lambda file: coverage(pair[1].train, runs[0].targets, file, data.y_train),
            },
            report,
        )
        for run in runs:
            snapshots = read_snapshots(study.file(distilled, run.seed, "snapshots"))
            file = folder / f"seed-{run.seed}.safetensors"
            first = run.seed == seeds[0]  # the one whose coverage is drawn
            keep_material(file, run, pair[1].train, data.x_train, data.y_train, snapshots, report, umap=first)
        shutil.rmtree(study.work, ignore_errors=True)
        report({"event": "end", "seconds": results["seconds"]})
        try_report([folder], say)
    return results


def _row(plan: Plan) -> Row:
    """Return the distilled row."""
    return next(row for row in plan.rows if row.name == KRR_ST)


def _cells(plan: Plan, study: Study) -> list[Cell]:
    """Return the study's cells in the form of the table, row by row."""
    results = study.cells.read()
    return [
        {"method": row.name, "seed": seed} | {key: cell[key] for key in ("error", "probes", "finetuned")}
        for row in plan.rows
        for seed in range(row.seeds)
        for cell in [results[row.name, seed, SOURCE]]
    ]


def _artifact(plan: Plan, study: Study, seed: int, folder: Path) -> DistilledSet:
    """Write the distilled set of one seed to ``folder`` with its measures, and return it."""
    row = _row(plan)
    cell = study.cells.read()[row.name, seed, SOURCE]
    pairs = DistilledSet.load(study.file(row, seed, "pairs"))
    pairs.metrics |= {"representation_error": cell["error"], "probes": cell["probes"]}
    write_card(pairs, pairs.save(folder / f"seed-{seed}.safetensors"))
    return pairs


def keep_partial(error: Diverged, folder: Path) -> None:
    """Write the last good pairs of a run that diverged to ``partial.safetensors``, and name the file in the message."""
    if error.partial is not None:
        error.partial.save(folder / "partial.safetensors")
        error.args = (f"{error}. Kept: {folder / 'partial.safetensors'}",)


def summary(results: dict[str, Any], cells: Sequence[Cell]) -> str:
    """Return results.md: the table, how to read it, and its main results as sentences."""
    data, settings, n = results["data"], results["settings"], len(results["seeds"])
    share = settings["distill"]["images"] / data["train"]
    pool = list(results["pool"].values())
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
        f"- {results['seconds']['total']:.0f} s with {results['workers']} worker process"
        f"{'es' if results['workers'] > 1 else ''} of one thread, the teacher included.",
    ]
    if results["command"]:
        lines += ["", f"Made by `{results['command']}`."]
    return "\n".join(lines) + "\n"
