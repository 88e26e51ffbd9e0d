"""One cell of the table: a distilled set (or none, or the teacher) measured under one seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..artifact import DistilledSet, Preprocessing
from ..config import InputError, Report, Settings, in_float32, silent
from ..data import CPU, ImageSet, to_device
from ..models import Network, frozen, in_chunks, representation_error, seeded
from .finetuning import check_targets, finetune
from .measures import labelled_rows, probe, standardise, why_no_probe
from .pretraining import pretrain

BATCH = 500


@dataclass
class Cell:
    """One method under one seed, measured on one set of images.

    Args:
        method: name of the row.
        seed: the seed.
        error: representation error, or None (default) if it is not defined.
        probes: accuracy in percent, under "features/5" (5 labels per class, on the features) or "output/0" (all labels,
            on the predicted representation). Default {}.
        finetuned: accuracy in percent after fine-tuning with a share of the labels. Default None: not measured.
    """

    method: str
    seed: int
    error: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    finetuned: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@in_float32
def evaluate(
    pairs: DistilledSet | None,
    data: ImageSet,
    test_representations: Tensor | None,
    make: Callable[[int], Network],
    settings: Settings,
    *,
    seed: int = 0,
    report: Report = silent,
    device: torch.device = CPU,
) -> Cell:
    """Pre-train a new network on ``pairs`` and measure it on ``data``.

    Args:
        pairs: the distilled set; None measures the network without pre-training.
        data: the images to measure on.
        test_representations: the teacher's representations of the held-out images, float32 [N, C], or None if they are
            not known: then there is no representation error.
        make: ``make(outputs)`` returns a network with random initial weights.
        settings: of pre-training, probes and fine-tuning.
        seed: seed of the initial weights, the order of the pairs and the labelled images; rows of one seed start from
            the same weights. Default 0.
        report: receives the events of pre-training, and one ``{"event": "cell", ...}`` per cell. Default: nothing is
            reported.
        device: where networks train and run; probes run on the CPU. Default: the CPU.
    """
    sets, known = {data.name: data}, {data.name: test_representations}
    return evaluate_on(pairs, sets, known, make, settings, seed=seed, report=report, device=device)[data.name]


@in_float32
def evaluate_on(
    pairs: DistilledSet | None,
    sets: Mapping[str, ImageSet],
    test_representations: Mapping[str, Tensor | None],
    make: Callable[[int], Network],
    settings: Settings,
    *,
    seed: int = 0,
    report: Report = silent,
    device: torch.device = CPU,
) -> dict[str, Cell]:
    """Pre-train one network as :func:`evaluate` does and measure it on several sets.

    Args:
        pairs: the distilled set; None measures the network without pre-training.
        sets: name -> images, all of one size. The first set is the source, the others are targets. Without ``pairs``,
            mean and std of the source normalise all of them.
        test_representations: name -> the teacher's representations of that set's held-out images, float32 [N, C], or
            None: then there is no representation error.
        make: ``make(outputs)`` returns a network with random initial weights.
        settings: of pre-training, probes and fine-tuning.
        seed: seed of the initial weights, the order of the pairs and the labelled images; rows of one seed start from
            the same weights. Default 0.
        report: receives the events of pre-training and fine-tuning, and one ``{"event": "cell", ...}`` per cell.
            Default: nothing is reported.
        device: where networks train and run; probes run on the CPU. Default: the CPU.

    Returns:
        Name -> cell.

    Raises:
        InputError: before any training, if the networks are to be fine-tuned and a target is not fit for it.
    """
    first = next(iter(sets.values()))
    shape = [first.channels, *first.size] if pairs is None else list(pairs.images.shape[1:])
    for data in sets.values():
        if [data.channels, *data.size] != shape:
            other = f"{data.name} has {[data.channels, *data.size]}"
            if pairs is None:
                raise InputError(f"sets: expected images of {shape} as {first.name} has; {other}")
            raise InputError(
                f"pairs: expected images of {[data.channels, *data.size]} as {data.name} has, got {shape}; a folder is "
                f"loaded in the size of the pairs by --size {shape[1]} (load_images(size=))"
            )
    check_targets(dict(list(sets.items())[1:]), settings.finetune)
    network = pretrain_new(pairs, make, settings, seed=seed, report=report, device=device)
    preprocessing = first.preprocessing if pairs is None else pairs.preprocessing
    predicts = pairs is not None and pairs.target_kind == "representation"
    cells = {}
    for name, data in sets.items():
        cell = cells[name] = Cell("no pre-training" if pairs is None else pairs.method, seed)
        target = test_representations.get(name) if predicts else None
        measure(network, preprocessing, data, settings, cell, target, output=pairs is not None, report=report)
        report({"event": "cell", **cell.as_dict()})
    return cells


def pretrain_new(
    pairs: DistilledSet | None,
    make: Callable[[int], Network],
    settings: Settings,
    *,
    seed: int = 0,
    report: Report = silent,
    device: torch.device = CPU,
) -> Network:
    """Return a new network, in eval mode, with the weights of ``seed``; it is pre-trained on ``pairs`` unless they
    are None."""
    outputs = pairs.targets.shape[1] if pairs is not None else 1
    network = seeded(lambda: make(outputs), seed).to(device)
    if pairs is not None:
        pretrain(network, pairs, settings.pretrain, seed=seed, report=report)
    return network.eval()


def measure(
    network: Network,
    preprocessing: Preprocessing,
    data: ImageSet,
    settings: Settings,
    cell: Cell,
    target: Tensor | None = None,
    output: bool = True,
    report: Report = silent,
) -> None:
    """Fill ``cell`` with the measures of ``network`` on ``data``.

    ``target``: representations of the held-out images, float32 [N, C], or None if the error is not defined.
    ``output=False`` leaves out the probes on the predicted representation, for a network that predicts none. Probes and
    fine-tuning are left out if :func:`why_no_probe` gives a reason.
    """
    if target is not None or settings.evaluate.labels:
        features, predictions = zip(
            *(_run(network, preprocessing, images) for images in (data.x_train, data.x_test)), strict=True
        )
        if target is not None:
            cell.error = representation_error(predictions[1], target)
        cell.probes = probes(features, data, settings, cell.seed, "features")
        if output:
            cell.probes |= probes(predictions, data, settings, cell.seed, "output")
    if settings.finetune.share and not why_no_probe(data):
        cell.finetuned = finetune(network, preprocessing, data, settings.finetune, seed=cell.seed, report=report)


@in_float32
def evaluate_teacher(
    train: Tensor, test: Tensor, data: ImageSet, settings: Settings, *, seed: int = 0, report: Report = silent
) -> Cell:
    """Measure the teacher's own representations by linear probes: the upper bound of the table.

    Args:
        train: representations of the training images, float32 [N, C].
        test: representations of the held-out images, float32 [Q, C].
        data: the images with their labels.
        settings: of the probes.
        seed: seed of the labelled images. Default 0.
        report: receives one ``{"event": "cell", ...}``. Default: nothing is reported.
    """
    cell = Cell("teacher", seed, 0.0, probes((train, test), data, settings, seed, "features"))
    report({"event": "cell", **cell.as_dict()})
    return cell


def probes(x: tuple[Tensor, ...], data: ImageSet, settings: Settings, seed: int, what: str) -> dict[str, float]:
    """Return the accuracies of probes with each number of labels on ``x`` = (training, held-out) features.

    The result is empty if :func:`why_no_probe` gives a reason. A class that has fewer images gives all of them. A
    number that most classes cannot give is left out.
    """
    if not settings.evaluate.labels or why_no_probe(data):
        return {}
    assert data.y_train is not None and data.y_test is not None
    config = settings.evaluate
    x_train, x_test = standardise(*x)
    count = int(data.y_train.bincount()[data.y_train.unique()].median())
    results = {}
    for per_class in config.labels:
        if per_class > count:
            continue
        accuracies = []
        for draw in range(config.draws if per_class else 1):
            rows = labelled_rows(data.y_train, per_class, seed * 1000 + draw)
            accuracies.append(probe(x_train[rows], data.y_train[rows], x_test, data.y_test, config.probe_l2))
        results[f"{what}/{per_class}"] = sum(accuracies) / len(accuracies)
    return results


@torch.no_grad()
def _run(network: Network, preprocessing: Preprocessing, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and predictions of all ``images``, in main memory."""
    f, device = frozen(network), network.head.weight.device
    features = torch.cat([in_chunks(f, preprocessing(to_device(part, device))) for part in images.split(BATCH)])
    return features.cpu(), network.head(features).cpu()
