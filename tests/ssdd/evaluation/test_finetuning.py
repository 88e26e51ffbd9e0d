"""Fine-tuning with a share of the labels."""

import pytest
import torch

from ssdd.config import Diverged, FinetuneConfig, InputError
from ssdd.data import ImageSet
from ssdd.evaluation import finetune
from ssdd.evaluation.finetuning import share_of_labels
from ssdd.models import seeded


def test_the_share_is_taken_class_by_class():
    labels = torch.tensor([0] * 20 + [1] * 11 + [2] * 3)
    rows = share_of_labels(labels, 0.2, 0)
    assert labels[rows].bincount().tolist() == [4, 2, 1] and len(rows.unique()) == 7
    assert not torch.equal(rows, share_of_labels(labels, 0.2, 1))
    assert len(share_of_labels(labels, 1.0, 0)) == 34


def test_it_learns_and_leaves_the_network_alone(make, few):
    network = seeded(lambda: make(16), 0).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    settings = FinetuneConfig(share=0.5, steps=60, lr=0.1, crop_pad=0)
    accuracy = finetune(network, few.preprocessing, few, settings, seed=1)
    assert accuracy > 60  # ten classes; the flip is part of the recipe, also for digits
    assert accuracy == finetune(network, few.preprocessing, few, settings, seed=1)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()) and not network.training


def test_what_it_refuses(make, few):
    network = seeded(lambda: make(16), 0)
    with pytest.raises(InputError, match="its images have no labels"):
        finetune(network, few.preprocessing, ImageSet("x", few.x_train, few.x_test), FinetuneConfig(share=0.1))
    with pytest.raises(Diverged, match=r"finetune\.lr"):
        finetune(network, few.preprocessing, few, FinetuneConfig(share=0.1, steps=20, lr=1e20))
    with pytest.raises(InputError, match="from 0 to 1"):
        FinetuneConfig(share=1.5)
