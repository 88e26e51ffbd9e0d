"""Linear probes: how well labels can be predicted linearly from features."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ..config import InputError, in_float32
from ..data import ImageSet


def why_no_probe(data: ImageSet) -> str:
    """Say in one line why ``data`` allows no probe and no fine-tuning; "" if it does.

    They need labels of at least two classes to learn from, and held-out images of these classes.

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
    elif not torch.isin(data.y_test, data.y_train).any():
        why = "no test image is of a class of the training images"
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


def nearest_neighbours(x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor, k: int = 20) -> float:
    """Test accuracy, in percent, of a weighted vote of the ``k`` most similar training images.

    Features [N, D] are compared by the cosine of their angle; a neighbour's vote weighs exp(cosine / 0.07), as in the
    usual k-nearest-neighbour read-out of self-supervised networks. Labels are int64 [N]. Nothing is trained.
    """
    if len(y_train.unique()) < 2:
        raise InputError("labels: a read-out needs at least two classes; why_no_probe(data) says so beforehand")
    k = min(k, len(x_train))
    train = torch.nn.functional.normalize(x_train.double(), dim=1)
    classes = int(y_train.max()) + 1
    right = 0
    for x, y in zip(x_test.double().split(1000), y_test.split(1000), strict=True):
        cosine, rows = (torch.nn.functional.normalize(x, dim=1) @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(x), classes, dtype=torch.float64)
        votes.scatter_add_(1, y_train[rows], ((cosine - 1) / 0.07).exp())
        right += int((votes.argmax(1) == y).sum())
    return 100 * right / len(y_test)


@in_float32
def read_out(x_train: Tensor, x_test: Tensor, data: ImageSet) -> dict[str, float]:
    """Test accuracy, in percent, of two read-outs of the representations [N, D] of ``data``, by name.

    Raises :class:`InputError` if the set has no labels to read.
    """
    if why := why_no_probe(data):
        raise InputError(why)
    assert data.y_train is not None and data.y_test is not None
    labels = data.y_train, data.y_test
    standard = standardise(x_train, x_test)
    return {
        f"{min(20, len(x_train))} nearest neighbours": nearest_neighbours(x_train, labels[0], x_test, labels[1]),
        "linear probe, all labels": probe(standard[0], labels[0], standard[1], labels[1]),
    }
