"""A run as a report shows it: read from its folder, whichever command wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifact import DistilledSet
from ..config import InputError, current_names
from ..studies import CELLS, is_distilled, read_cells
from .curves import Curve, curves_of, read_events
from .directory import EVENTS, MARK
from .material import Material, material_file, read_material

RUN = "run.json"
RESULTS = "results.json"
GALLERIES = 12
"""Sets of images of one run that a report shows, at most."""


@dataclass(frozen=True)
class Gallery:
    """One distilled set of a run."""

    name: str
    pairs: DistilledSet
    material: Material | None


@dataclass
class Record:
    """What the folder of a run holds."""

    name: str
    """How the report calls it: its folder's name."""
    kind: str
    """The command that wrote it: "distill", "demo" or "study"."""
    galleries: list[Gallery] = field(default_factory=list)
    curves: dict[str, dict[int, Curve]] = field(default_factory=dict)
    """Method ("" if there is but one) -> seed -> curve."""
    cells: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Row of a study ("" for the whole run) -> stage -> field -> value."""
    versions: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    """What it was made from: data, teacher, seeds."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know: not finished, an artifact that lies elsewhere, ..."""
    left_out: int = 0
    """Sets of images beyond ``GALLERIES``."""


def read_record(folder: Path, work: Path | None = None) -> Record:
    """Read the folder of a run. ``work``: where a study keeps its sets (default: ``folder``/work).

    Raises :class:`InputError` if it holds no run, or a part of it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"run: {folder} is no folder; give the folder that distill, demo or study wrote to")
    if not any((folder / name).is_file() for name in (MARK, RUN, RESULTS, CELLS)):
        raise InputError(f"run: {folder} holds no run of ssdd (none of {MARK}, {RUN}, {RESULTS}, {CELLS})")
    kind = "distill" if (folder / RUN).is_file() else "study"
    if kind == "study" and any((folder / name).is_file() for name in (MARK, RESULTS)):
        kind = "demo"
    record = Record(folder.resolve().name, kind)
    _log(record, folder / MARK if kind != "study" else (work or folder / "work") / EVENTS)
    _cells(record, folder / CELLS)
    if kind == "study":
        _study(record, work or folder / "work")
    else:
        _artifacts(record, folder)
    if kind == "distill":
        _arguments(record, folder / RUN)
    if not record.versions and record.galleries:
        record.versions = dict(record.galleries[0].pairs.versions)
    return record


def read_records(folders: Sequence[Path], work: Path | None = None) -> list[Record]:
    """The records of all folders, each with a name of its own."""
    records = [read_record(folder, work) for folder in folders]
    for key in (lambda i: folders[i].resolve().name, lambda i: "/".join(folders[i].resolve().parts[-2:])):
        names = [key(i) for i in range(len(folders))]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{name} ({i})" for i, name in enumerate(names, 1)]
    for record, name in zip(records, names, strict=True):
        record.name = name
    return records


def _log(record: Record, file: Path) -> None:
    events = read_events(file)
    record.curves = curves_of(events, file)
    ended = False
    of_plan: set[str] = set()
    for event in events:
        if event["event"] == "start":
            # What a call of a study found out about its plan holds until the next call, which finds it out anew.
            record.notes = [note for note in record.notes if note not in of_plan]
            if isinstance(event.get("settings"), dict):
                record.settings[""] = current_names(event["settings"])
            if isinstance(event.get("versions"), dict):
                record.versions = {str(k): str(v) for k, v in event["versions"].items()}
            if event.get("command") and str(event["command"]) not in record.commands:
                record.commands.append(str(event["command"]))
            for key in ("seed", "seeds", "data", "teacher"):
                if event.get(key) is not None:
                    value = event[key]
                    record.inputs[key] = ", ".join(map(str, value)) if isinstance(value, list) else value
        ended = event["event"] in ("result", "end") or (ended and event["event"] != "start")
        if event["event"] == "warning":
            note = f"Warning: {event.get('message')}"
            if note not in record.notes:
                record.notes.append(note)
            if event.get("of_plan"):
                of_plan.add(note)
    stopped = [event for event in events if event["event"] == "stopped"]
    if events and not ended and record.kind != "study":
        why = f" ({stopped[-1].get('error')})" if stopped else ""
        record.notes.append(f"This run is not finished{why}: what follows is what it has written so far.")


def _arguments(record: Record, file: Path) -> None:
    """What run.json says of the data and the teacher; paths without their folders."""
    if not file.is_file():
        return
    try:
        arguments = json.loads(file.read_text(encoding="utf-8"))["arguments"]
        found = {key: arguments.get(key) for key in ("data", "teacher", "representations", "size")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error!r})") from None
    record.inputs |= {key: Path(str(value)).name for key, value in found.items() if value is not None}


def _gallery(record: Record, name: str, file: Path) -> None:
    if len(record.galleries) < GALLERIES:
        record.galleries.append(Gallery(name, DistilledSet.load(file), read_material(material_file(file))))
    else:
        record.left_out += 1


def _artifacts(record: Record, folder: Path) -> None:
    if (folder / "distilled.safetensors").is_file():
        _gallery(record, "", folder / "distilled.safetensors")
    elif (folder / "partial.safetensors").is_file():
        _gallery(record, "partial", folder / "partial.safetensors")
    seeds = {
        int(match[1]): file
        for file in folder.glob("seed-*.safetensors")
        if (match := re.fullmatch(r"seed-(\d+)\.safetensors", file.name))
    }
    for seed in sorted(seeds):
        _gallery(record, f"seed {seed}", seeds[seed])


def _cells(record: Record, file: Path) -> None:
    for cell in read_cells(file).values():
        if not _measured(cell):
            raise InputError(f"{file}: the cell of {cell['row']!r}, seed {cell['seed']}, holds no numbers of a study")
        record.cells.append(cell)
        record.settings.setdefault(cell["row"], current_names(cell["settings"]))
        if isinstance(cell.get("versions"), Mapping):
            record.versions = {str(k): str(v) for k, v in cell["versions"].items()}
    if "" in record.settings:  # of a demonstration: those of the run are those of all rows
        record.settings = {"": record.settings[""]}


def _measured(cell: Mapping[str, Any]) -> bool:
    """True if what was measured are numbers under the names that a study gives them."""
    values = [*cell["probes"].values(), cell.get("error") or 0, cell.get("finetuned") or 0]
    names = all(re.fullmatch(r"(features|output)/\d+", key) for key in cell["probes"])
    return names and all(isinstance(value, int | float) for value in values)


def _study(record: Record, work: Path) -> None:
    found = sorted(
        (int(match[2]), match[1], file)
        for file in work.glob("*.pairs.safetensors")
        if (match := re.fullmatch(r"(.+)\.seed-(\d+)\.pairs\.safetensors", file.name))
    )
    distilled = {slug(cell["row"]): cell["row"] for cell in record.cells if is_distilled(cell.get("from", ""))}
    for seed, name, file in found:
        if name in distilled and seed == 0:
            _gallery(record, distilled[name], file)
    if distilled and not record.galleries:
        record.notes.append("The distilled sets of this study are not in its folder: no images are shown.")


def slug(name: str) -> str:
    """A row's name as part of a file name, as a study makes it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")
