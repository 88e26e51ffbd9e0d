"""Target-data-free distillation as a measure of a study's row: a classifier's student, tested on the target."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..artifact import DistilledSet
from ..config import InputError, Report, Settings
from ..data import CPU, ImageSet
from ..models import Network, accuracy
from ..teachers import Classifier, check_kd, distil_knowledge


def images_for(pairs: DistilledSet | None, classifier: Classifier, data: ImageSet, settings: Settings) -> DistilledSet:
    """Return the images of the distillation. Noise needs only their number and shape, those of ``settings``.

    Raises:
        InputError: if the row has no images, and they are not noise.
    """
    if pairs is not None:
        return pairs
    if settings.kd.images != "noise":
        raise InputError('kd.images: a row from "nothing" has no images to distil on; expected "noise"')
    return blank_images(classifier, data, settings)


def blank_images(classifier: Classifier, data: ImageSet, settings: Settings) -> DistilledSet:
    """Return as many black images of the shape of ``data`` as the settings distil."""
    blank = torch.zeros(settings.distill.images, data.channels, *data.size)
    return DistilledSet(blank, torch.zeros(len(blank), 1), classifier.preprocessing, method="noise")


def measure_kd(
    classifier: Classifier,
    network: Network,
    pairs: DistilledSet | None,
    data: ImageSet,
    make: Callable[[int], Network],
    settings: Settings,
    seed: int,
    report: Report,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Distil ``classifier`` into a student that starts as ``network``; return the test accuracies in percent.

    Args:
        classifier: the teacher.
        network: the row's pre-trained network, which stays as it is.
        pairs: the images that teacher and student see; None for noise.
        data: the target; only its test images are used.
        make: ``make(outputs)`` returns a student with random weights.
        settings: those of the row.
        seed: seed of the last layer and of every random draw.
        report: receives the events of the distillation.
        device: where the networks run. Default: the CPU.
    """
    images = images_for(pairs, classifier, data, settings)
    check_kd(classifier, images, data)
    student = distil_knowledge(
        classifier,
        images,
        make,
        settings.kd,
        pretrain=lambda net: net.load_state_dict(network.state_dict()),
        seed=seed,
        report=report,
        device=device,
    )
    classifier.module.to(device)
    config = settings.kd
    how = {"batch": config.batch, "batch_statistics": True} if config.mode == "train" else {}
    assert data.y_test is not None
    return {
        "student": accuracy(student, classifier.preprocessing, data.x_test, data.y_test, **how),  # type: ignore[arg-type]
        "teacher": classifier.accuracy(data, **how),  # type: ignore[arg-type]
    }
