"""Baselines: real images with the teacher's representations, or with labels."""

import pytest
import torch

from ssdd.config import InputError
from ssdd.data import ImageSet
from ssdd.studies import baseline


def test_baseline_has_the_images_and_their_representations(few, representations):
    rows = torch.tensor([3, 1, 200])
    s = baseline(few, rows, representations.train, method="random + teacher", seed=0)
    assert torch.equal((s.images * 255).round().to(torch.uint8), few.x_train[rows].permute(0, 3, 1, 2))
    assert torch.equal(s.targets, representations.train[rows])
    assert torch.allclose(s.inputs(), few.preprocessing(few.x_train[rows]))


def test_baseline_with_labels(few, representations):
    rows = torch.tensor([3, 1, 200])
    s = baseline(few, rows, representations.train, method="random + labels", seed=0, targets="labels")
    assert s.target_kind == "labels" and torch.equal(s.targets.argmax(1), few.y_train[rows])
    with pytest.raises(InputError, match="labelled"):
        baseline(
            ImageSet("x", few.x_train, few.x_test), rows, representations.train, method="", seed=0, targets="labels"
        )
