"""One cell of the table: a set of pairs (or none, or the teacher) under one seed, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..artifact import DistilledSet, Preprocessing
from ..config import InputError, Preset, Report, silent
from ..data import CPU, ImageSet, sent
from ..models import Network, frozen, in_chunks, representation_error, seeded
from .finetuning import finetune
from .measures import labelled_rows, probe, standardise, why_no_probe
from .pretraining import pretrain

BATCH = 500


@dataclass
class Cell:
    """One method under one seed, measured on one set of images. ``error`` is None where it is not defined.

    ``probes``: accuracy in percent under "features/5" (5 labels a class, on the features) or "output/0" (all labels,
    on the predicted representation). ``finetuned``: accuracy after fine-tuning with a share of the labels, if asked.
    """

    method: str
    seed: int
    error: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    finetuned: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    pairs: DistilledSet | None,
    data: ImageSet,
    test_representations: Tensor | None,
    make: Callable[[int], Network],
    settings: Preset,
    *,
    seed: int = 0,
    report: Report = silent,
    device: torch.device = CPU,
) -> Cell:
    """Pre-train a new network on ``pairs`` and measure it; ``pairs=None`` is the row without pre-training.

    ``make(outputs)`` returns a network with a random start, which ``seed`` fixes; a seed's rows start alike.
    ``test_representations``: g of the held-out images, float32 [N, C], or None where they are not known. Networks are
    on ``device``; probes run on the CPU.
    """
    if pairs is not None and tuple(pairs.images.shape[1:]) != (data.channels, *data.size):
        wanted, came = [data.channels, *data.size], list(pairs.images.shape[1:])
        raise InputError(f"pairs: expected images of {wanted} as {data.name} has, got {came}")
    network = pretrained(pairs, make, settings, seed=seed, report=report, device=device)
    preprocessing = data.preprocessing if pairs is None else pairs.preprocessing
    wanted_output = test_representations if pairs is not None and pairs.target_kind == "representation" else None
    cell = Cell("no pre-training" if pairs is None else pairs.method, seed)
    measure(network, preprocessing, data, settings, cell, wanted_output, output=pairs is not None)
    report({"event": "cell", **cell.as_dict()})
    return cell


def pretrained(
    pairs: DistilledSet | None,
    make: Callable[[int], Network],
    settings: Preset,
    *,
    seed: int = 0,
    report: Report = silent,
    device: torch.device = CPU,
) -> Network:
    """A new network, in eval mode, pre-trained on ``pairs`` where there are any; it starts from ``seed``."""
    outputs = pairs.targets.shape[1] if pairs is not None else 1
    network = seeded(lambda: make(outputs), seed).to(device)
    if pairs is not None:
        pretrain(network, pairs, settings.pretrain, seed=seed, report=report)
    return network.eval()


def measure(
    network: Network,
    preprocessing: Preprocessing,
    data: ImageSet,
    settings: Preset,
    cell: Cell,
    wanted_output: Tensor | None = None,
    output: bool = True,
) -> None:
    """Fill ``cell`` with what ``network`` is worth on ``data``.

    ``wanted_output``: representations of the held-out images, float32 [N, C], where the error is defined. Probes and
    fine-tuning are left out if :func:`why_no_probe` gives a reason.
    ``output=False`` leaves out the probes on the predicted representation (a network that predicts none).
    """  # fmt: skip
    features, predictions = zip(
        *(_run(network, preprocessing, images) for images in (data.x_train, data.x_test)), strict=True
    )
    if wanted_output is not None:
        cell.error = representation_error(predictions[1], wanted_output)
    cell.probes = probes(features, data, settings, cell.seed, "features")
    if output:
        cell.probes |= probes(predictions, data, settings, cell.seed, "output")
    if settings.finetune.share and not why_no_probe(data):
        cell.finetuned = finetune(network, preprocessing, data, settings.finetune, seed=cell.seed)


def evaluate_teacher(
    train: Tensor, test: Tensor, data: ImageSet, settings: Preset, *, seed: int = 0, report: Report = silent
) -> Cell:
    """The ceiling: probes on the teacher's own representations [N, C]."""
    cell = Cell("teacher", seed, 0.0, probes((train, test), data, settings, seed, "features"))
    report({"event": "cell", **cell.as_dict()})
    return cell


def probes(x: tuple[Tensor, ...], data: ImageSet, settings: Preset, seed: int, what: str) -> dict[str, float]:
    """Probes with each number of labels on ``x`` = (training, held-out) features; none if :func:`why_no_probe`.

    A class that has fewer images gives all of them; a number that most classes cannot give is left out.
    """
    if why_no_probe(data):
        return {}
    assert data.y_train is not None and data.y_test is not None
    config = settings.evaluate
    x_train, x_test = standardise(*x)
    count = int(data.y_train.bincount()[data.y_train.unique()].median())
    found = {}
    for per_class in config.labels:
        if per_class > count:
            continue
        accuracies = []
        for draw in range(config.draws if per_class else 1):
            rows = labelled_rows(data.y_train, per_class, seed * 1000 + draw)
            accuracies.append(probe(x_train[rows], data.y_train[rows], x_test, data.y_test, config.probe_l2))
        found[f"{what}/{per_class}"] = sum(accuracies) / len(accuracies)
    return found


@torch.no_grad()
def _run(network: Network, preprocessing: Preprocessing, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and predictions of all ``images``, in main memory."""
    f, device = frozen(network), network.head.weight.device
    features = torch.cat([in_chunks(f, preprocessing(sent(part, device))) for part in images.split(BATCH)])
    return features.cpu(), network.head(features).cpu()
