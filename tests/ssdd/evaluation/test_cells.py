"""Pre-training and the cells of the table."""

import dataclasses

import pytest
import torch

from ssdd.artifact import read_safetensors
from ssdd.checkpoint import Checkpoints, Stopped
from ssdd.config import Diverged, InputError, PretrainConfig
from ssdd.data import ImageSet
from ssdd.evaluation import evaluate, pretrain, save_backbone
from ssdd.models import build, seeded
from ssdd.selection import random_subset
from ssdd.studies import baseline


@pytest.fixture(scope="module")
def pairs(few, representations):
    return baseline(few, random_subset(400, 40, 0), representations.train, method="random", seed=0)


def test_pretraining_learns_the_pairs(make, pairs):
    network = seeded(lambda: make(16), 0)
    losses = []
    pretrain(network, pairs, PretrainConfig(steps=200, lr=0.4), report=lambda e: losses.append(e["loss"]))
    assert losses[-1] < 0.2 * float(pairs.targets.var(0).mean()) and not network.training


def test_batches_smaller_than_the_set_use_all_of_it(make, pairs):
    network = seeded(lambda: make(16), 0)
    pretrain(network, pairs, PretrainConfig(steps=3, batch=16, schedule="constant"))
    again = seeded(lambda: make(16), 0)
    pretrain(again, pairs, PretrainConfig(steps=3, batch=16, schedule="constant"))
    assert torch.equal(network.head.weight, again.head.weight)
    with pytest.raises(Diverged):
        pretrain(again, pairs, PretrainConfig(steps=200, lr=1e20))


def test_a_pretraining_that_stops_goes_on_to_the_same_bits(make, pairs, tmp_path):
    config = PretrainConfig(steps=11, batch=16, contrast=1.5)
    whole, first, second, other = (seeded(lambda: make(16), 0) for _ in range(4))
    pretrain(whole, pairs, config)
    asked = iter([False, False, False, True])
    with pytest.raises(Stopped, match="stopped after step 4"):
        pretrain(first, pairs, config, checkpoints=Checkpoints(tmp_path, "pretrain", stop=lambda: next(asked)))
    pretrain(second, pairs, config, checkpoints=Checkpoints(tmp_path, "pretrain"))
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    with pytest.raises(InputError, match="pretrain.lr = .* seed = 0 there, 1 here"):
        changed = dataclasses.replace(config, lr=0.3)
        pretrain(other, pairs, changed, seed=1, checkpoints=Checkpoints(tmp_path, "pretrain"))


def test_contrast_is_taken_back_from_the_head(make, pairs):
    """The body learns from targets further from their mean; predictions are of the original targets."""
    centre, config = pairs.targets.mean(0), PretrainConfig(steps=60, lr=0.4)
    further = dataclasses.replace(pairs, targets=centre + 2 * (pairs.targets - centre))
    network, other = (seeded(lambda: make(16), 0) for _ in range(2))
    pretrain(network, pairs, dataclasses.replace(config, contrast=2.0))
    pretrain(other, further, config)
    x = pairs.inputs()
    with torch.no_grad():
        torch.testing.assert_close(network(x), centre + (other(x) - centre) / 2, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.features(x), other.features(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="contrast: expected more than 0"):
        PretrainConfig(contrast=0.0)


def test_images_of_another_size_are_refused_with_what_to_say(make, pairs, few, small):
    wide = ImageSet("wide", torch.zeros(4, 9, 9, 1, dtype=torch.uint8), torch.zeros(2, 9, 9, 1, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"as wide has, got \[1, 8, 8\]; .*--size 8 "):
        evaluate(pairs, wide, None, make, small)


def test_outputs_must_match(make, pairs):
    with pytest.raises(InputError, match="16 outputs"):
        pretrain(make(3), pairs, PretrainConfig(steps=1))


def test_cells(make, pairs, few, representations, small):
    cell = evaluate(pairs, few, representations.test, make, small)
    assert 0 < cell.error < 1 and set(cell.probes) == {f"{w}/{n}" for w in ("features", "output") for n in (5, 0)}
    nothing = evaluate(None, few, representations.test, make, small)
    assert nothing.method == "no pre-training" and nothing.error is None and "output/0" not in nothing.probes
    unlabelled = ImageSet("x", few.x_train, few.x_test)
    assert evaluate(pairs, unlabelled, representations.test, make, small).probes == {}
    assert evaluate(pairs, few, None, make, small).error is None


def test_label_counts_a_class_cannot_give_are_left_out(make, few, small):
    many = dataclasses.replace(small, evaluate=dataclasses.replace(small.evaluate, labels=(5, 5000, 0)))
    assert set(evaluate(None, few, None, make, many).probes) == {"features/5", "features/0"}


def test_image_shapes_must_match(make, pairs, few, small):
    wide = ImageSet("wide", few.x_train.repeat(1, 1, 2, 1), few.x_test.repeat(1, 1, 2, 1))
    with pytest.raises(InputError, match="expected images"):
        evaluate(pairs, wide, None, make, small)


def test_a_cell_of_labels_has_no_error(make, few, representations, small):
    rows = random_subset(400, 40, 0)
    labelled = baseline(few, rows, representations.train, method="random + labels", seed=0, targets="labels")
    cell = evaluate(labelled, few, representations.test, make, small)
    assert cell.method == "random + labels" and cell.error is None and "output/0" in cell.probes


def test_a_saved_backbone_is_the_networks(make, pairs, tmp_path, small):
    network = seeded(lambda: make(16), 0)
    save_backbone(network, tmp_path / "w.safetensors", pairs, small.pretrain, model=small.student.model, seed=3)
    tensors, meta = read_safetensors(tmp_path / "w.safetensors")
    build(small.student.model, 1, (8, 8), 2).backbone.load_state_dict(tensors)
    assert torch.equal(tensors["blocks.0.weight"], network.backbone.blocks[0].weight)
    assert (meta["size"], meta["seed"], meta["dimension"]) == ([8, 8], 3, network.dimension)
