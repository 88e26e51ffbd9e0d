"""Linear probes: how well labels can be predicted linearly from features."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ..config import InputError
from ..data import ImageSet


def why_no_probe(data: ImageSet) -> str:
    """Say in one line why ``data`` allows no probe and no fine-tuning; "" if it does.

    They need labels of at least two classes to learn from, and labels of the held-out images.

    Args:
        data: the images.
    """
    if data.y_train is None or data.y_test is None:
        part = (
            "images"
            if data.y_train is None and data.y_test is None
            else ("training images" if data.y_train is None else "test images")
        )
        why = f"its {part} have no labels"
    elif (count := len(data.y_train.unique())) < 2:
        why = f"its training images are of {count} class"
    else:
        return ""
    return f"{data.name}: no probe and no fine-tuning, as {why}"


def labelled_rows(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Draw ``per_class`` rows of each class at random (all rows of a smaller class). 0 returns every row."""
    if per_class == 0:
        return torch.arange(len(labels))
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=g)
    return torch.cat([order[labels[order] == c][:per_class] for c in labels.unique().tolist()])


def probe(x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor, l2: float = 1.0) -> float:
    """Return the test accuracy, in percent, of an L2-regularised logistic regression on features [N, D].

    The caller standardises the features (:func:`standardise`). ``l2`` is the weight of the penalty in the summed
    log-loss.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(y_train.unique()) < 2:
        raise InputError("labels: a probe needs at least two classes; why_no_probe(data) says so beforehand")
    with threadpool_limits(1), warnings.catch_warnings():
        # scikit-learn warns about one label per class, which is intended here.
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        model = LogisticRegression(C=1 / max(l2, 1e-12), max_iter=500, tol=1e-3)
        model.fit(x_train.double().numpy(), y_train.numpy())
        right = model.predict(x_test.double().numpy()) == y_test.numpy()
    return 100 * float(np.mean(right))


def standardise(x_train: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale both [N, D] by the training images' mean and standard deviation. No labels are used."""
    mean, std = x_train.double().mean(0), x_train.double().std(0).clamp_min(1e-6)
    return (x_train.double() - mean) / std, (x_test.double() - mean) / std
