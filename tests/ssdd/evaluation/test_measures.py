"""Error, probes and splits in cases with known answers."""

import pytest
import torch

from ssdd.config import InputError
from ssdd.evaluation import labelled_rows, probe, representation_error


def test_predicting_the_mean_is_1_and_the_teacher_is_0():
    g = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3 + 5
    assert representation_error(g.mean(0).expand_as(g), g) == pytest.approx(1, abs=1e-6)
    assert representation_error(g, g) == 0
    assert representation_error(g + 0.5 * (g.mean(0) - g), g) == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(InputError, match="predicted"):
        representation_error(g[:, :3], g)


def test_splits_have_k_labels_per_class():
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 4)
    rows = labelled_rows(labels, 5, seed=0)
    assert labels[rows].bincount().tolist() == [5, 5, 4] and len(set(rows.tolist())) == 14
    assert torch.equal(rows, labelled_rows(labels, 5, 0)) and not torch.equal(rows, labelled_rows(labels, 5, 1))
    assert torch.equal(labelled_rows(labels, 0, 0), torch.arange(54))


def test_probe_separates_what_is_separable_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(40)
    x = torch.nn.functional.one_hot(y).double() * 6 + torch.randn(120, 3, generator=g)
    assert probe(x[:60], y[:60], x[60:], y[60:]) > 95
    noise = torch.randn(120, 3, generator=g).double()
    assert probe(noise[:60], y[:60], noise[60:], y[60:]) < 60
    with pytest.raises(InputError, match="two classes"):
        probe(x[:2], y[:2] * 0, x, y)
