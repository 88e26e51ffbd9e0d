"""What a report shows of a run and only the run itself knows: small files that it leaves beside its artifacts.

A report is made later, without the data set and the teacher. So a run keeps, beside each distilled set, the nearest
real images of each target, a few images at some steps, and the representations as points of a plane.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..artifact import DistilledSet, read_safetensors, write_atomically
from ..config import InputError, Report
from ..studies import Plan, Study, read_snapshots
from .pictures import plane, sample

FORMAT = "ssdd.report-material"
SHOWN = 1000
"""Images of one set that a report shows, at most."""
NEAREST = 3
"""Real images shown per target."""
POINTS = 2000
"""Real representations that the picture of their space shows, at most."""
MOMENTS = 12
"""Images of which the outer steps are kept."""
PIXELS = 3 << 20
"""Pixels of all real images that are kept, at most: larger ones are made smaller."""


@dataclass(frozen=True)
class Material:
    """What :func:`make_material` computes. Images are uint8 [N, H, W, C]."""

    nearest: Tensor
    """Row of ``real`` per shown image and rank, int64 [S, k]."""
    distance: Tensor
    """Distance of each of these to the target, as a fraction of the spread of all representations, float32 [S, k]."""
    real: Tensor
    """The real images, each of them once."""
    rows: Tensor
    """Their rows in the training images, int64 [U]."""
    labels: Tensor
    """Their classes, int64 [U]; empty if there are none."""
    points: Mapping[str, tuple[Tensor, Tensor]]
    """"pca" and maybe "umap" -> points of real representations, float32 [P, 2], and of the targets, float32 [S, 2]."""
    point_labels: Tensor
    """Classes of the real points, int64 [P]; empty if there are none."""
    snapshots: Mapping[int, Tensor]
    """Outer step -> the first images at that step; empty if the run kept none."""
    about: Mapping[str, Any]
    """``count`` of real representations, ``share`` of their variance that the plane shows."""


def material_file(artifact: Path) -> Path:
    """The file that goes with a distilled set."""
    return artifact.with_suffix(".report.safetensors")


def make_material(
    pairs: DistilledSet,
    representations: Tensor,
    images: Tensor,
    labels: Tensor | None,
    snapshots: Mapping[int, Tensor],
    umap: bool = True,
) -> Material:
    """Compute it.

    ``representations``: of the training images, float32 [N, C]; they may be mapped. ``images``: these, uint8
    [N, H, W, C], with ``labels``, int64 [N], if there are any. ``snapshots``: outer step -> images at that step.
    ``umap``: also by UMAP, if that is installed; it takes seconds, after a first call that compiles it.
    """
    targets = pairs.targets[:SHOWN]
    centre, spread = _spread(representations)
    near, distance = _nearest(targets, representations, centre)
    rows, index = near.unique(return_inverse=True)
    some = torch.empty(0, dtype=torch.int64) if labels is None else labels
    picked = sample(*representations.shape)[:: max(1, -(-min(len(representations), 10_000) // POINTS))]
    points = representations[picked].double()
    mean, axes, share = plane(points)
    found = {"pca": tuple(((x.double() - mean) @ axes).float() for x in (points, pairs.targets))}
    found |= _umap(points, pairs.targets) if umap else {}
    return Material(
        index,
        distance / max(spread, 1e-30),
        _small(images[rows]),
        rows,
        some[rows] if len(some) else some,
        found,  # type: ignore[arg-type]
        some[picked] if len(some) else some,
        {step: to_bytes_per_pixel(x[:MOMENTS]) for step, x in snapshots.items()},
        {"count": len(representations), "share": share},
    )


def keep_material(
    artifact: Path,
    pairs: DistilledSet,
    representations: Tensor,
    images: Tensor,
    labels: Tensor | None,
    snapshots: Mapping[int, Tensor],
    report: Report,
    umap: bool = True,
) -> None:
    """Write what a report needs beside ``artifact``. What goes wrong is a warning: the results are complete."""
    try:
        if pairs.targets.shape[1] == representations.shape[1] and pairs.target_kind == "representation":
            write_material(
                make_material(pairs, representations, images, labels, snapshots, umap), material_file(artifact)
            )
    except Exception as error:  # an optional package may raise anything
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        message = f"{material_file(artifact)}: not written ({why}); the report lacks the nearest real images"
        report({"event": "warning", "message": message})


def keep_study_material(plan: Plan, study: Study, report: Report) -> None:
    """:func:`keep_material` for seed 0 of each distilled row of a study; what is there already stays."""
    for row in plan.rows:
        file = study.file(row, 0, "pairs")
        if row.selected or not file.is_file() or material_file(file).is_file():
            continue
        kept = study.file(row, 0, "snapshots")
        snapshots = read_snapshots(kept) if kept.is_file() else {}
        representations = study.teachers[row.teacher][1].train
        keep_material(
            file, DistilledSet.load(file), representations, study.data.x_train, study.data.y_train, snapshots, report
        )


def to_bytes_per_pixel(images: Tensor) -> Tensor:
    """Pixels around [0, 1], float [N, C, H, W] -> uint8 [N, H, W, C]."""
    return images.detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _spread(representations: Tensor) -> tuple[Tensor, float]:
    """Mean [C] of the representations, and the root of their mean squared distance to it."""
    total, squares = torch.zeros(representations.shape[1], dtype=torch.float64), 0.0
    for part in representations.split(4096):
        total += part.double().sum(0)
    mean = total / len(representations)
    for part in representations.split(4096):
        squares += float((part.double() - mean).square().sum())
    return mean, (squares / len(representations)) ** 0.5


def _nearest(targets: Tensor, representations: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the nearest representations of each target, int64 [S, k], nearest first, and their distances."""
    y = (targets.double() - centre).float()
    distance, row = torch.empty(len(y), 0), torch.empty(len(y), 0, dtype=torch.int64)
    for start in range(0, len(representations), 4096):
        part = (representations[start : start + 4096].double() - centre).float()
        distance = torch.cat([distance, torch.cdist(y, part)], 1)
        row = torch.cat([row, (start + torch.arange(len(part))).expand(len(y), -1)], 1)
        distance, order = distance.topk(min(NEAREST, distance.shape[1]), largest=False)
        row = row.gather(1, order)
    return row, distance


def _small(images: Tensor) -> Tensor:
    """The same images, uint8, made smaller by area if there are too many pixels."""
    n, h, w, _ = images.shape
    factor = -(-max(1.0, (n * h * w / PIXELS) ** 0.5) // 1)
    if factor == 1:
        return images.contiguous()
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (max(1, int(h // factor)), max(1, int(w // factor))), mode="area")
    return x.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _umap(points: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """UMAP's points, if that package is installed and there are enough of them."""
    if find_spec("umap") is None or len(points) < 20:
        return {}
    import umap

    both = torch.cat([points, targets.double()]).float().numpy()
    flat = torch.from_numpy(umap.UMAP(n_components=2, random_state=0, n_jobs=1).fit_transform(both)).float()
    return {"umap": (flat[: len(points)], flat[len(points) :])}


def write_material(material: Material, file: Path) -> Path:
    """Write it as one safetensors file."""
    tensors = {key: getattr(material, key) for key in ("nearest", "distance", "real", "rows", "labels", "point_labels")}
    for name, (real, targets) in material.points.items():
        tensors |= {f"points.{name}.real": real, f"points.{name}.targets": targets}
    tensors |= {f"snapshot.{step}": x for step, x in material.snapshots.items()}
    meta = {"format": FORMAT, "about": dict(material.about)}
    content = {key: value.contiguous().clone() for key, value in tensors.items()}
    return write_atomically(file, to_bytes(content, metadata={"ssdd": json.dumps(meta)}))


def read_material(file: Path) -> Material | None:
    """What :func:`write_material` wrote; None if there is no such file. A damaged file is an :class:`InputError`."""
    if not file.is_file():
        return None
    tensors, meta = read_safetensors(file)
    try:
        if meta.get("format") != FORMAT:
            raise ValueError(f"format {meta.get('format')!r}")
        names = {key.split(".")[1] for key in tensors if key.startswith("points.")}
        found = Material(
            tensors["nearest"],
            tensors["distance"],
            tensors["real"],
            tensors["rows"],
            tensors["labels"],
            {name: (tensors[f"points.{name}.real"], tensors[f"points.{name}.targets"]) for name in sorted(names)},
            tensors["point_labels"],
            {int(key.split(".")[1]): x for key, x in tensors.items() if key.startswith("snapshot.")},
            dict(meta["about"]),
        )
        _check(found)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{file}: damaged material of a report ({error!r})") from None
    return found


def _check(found: Material) -> None:
    """Raise ValueError if the parts do not fit together."""
    if found.real.dtype != torch.uint8 or found.real.dim() != 4 or found.real.shape[-1] not in (1, 3):
        raise ValueError("real: expected uint8 images")
    if found.nearest.shape != found.distance.shape or found.nearest.dim() != 2:
        raise ValueError("nearest, distance: expected one shape")
    if found.nearest.numel() and not 0 <= int(found.nearest.min()) <= int(found.nearest.max()) < len(found.real):
        raise ValueError("nearest: expected rows of real")
    if any(x.dtype != torch.uint8 or x.dim() != 4 or x.shape[-1] not in (1, 3) for x in found.snapshots.values()):
        raise ValueError("snapshot: expected uint8 images")
    if len({x.shape for x in found.snapshots.values()}) > 1:
        raise ValueError("snapshot: expected images of one size")
    if len(found.rows) != len(found.real) or len(found.labels) not in (0, len(found.real)):
        raise ValueError("rows, labels: expected one per image of real")
    for real, targets in found.points.values():
        if len(found.point_labels) not in (0, len(real)):
            raise ValueError("point_labels: expected one per point")
        if real.dim() != 2 or real.shape[1] != 2 or targets.dim() != 2 or targets.shape[1] != 2:
            raise ValueError("points: expected [N, 2]")
    float(found.about["share"]), int(found.about["count"])
