"""Pre-training and the cells of the table, and the worker processes that fill them."""

import dataclasses

import pytest
import torch

from ssdd.config import Diverged, InputError, PretrainConfig
from ssdd.data import ImageSet
from ssdd.evaluate import (
    KMEANS,
    KRR_ST,
    NO_PRETRAINING,
    RANDOM,
    TEACHER,
    Study,
    Task,
    distil_seed,
    evaluate,
    other_rows,
    pretrain,
    run_tasks,
)
from ssdd.models import seeded
from ssdd.select import baseline, random_subset


@pytest.fixture(scope="module")
def pairs(few, representations):
    return baseline(few, random_subset(400, 40, 0), representations.train, method="random", seed=0)


def test_pretraining_learns_the_pairs(make, pairs):
    network = seeded(lambda: make(16), 0)
    losses = []
    pretrain(network, pairs, PretrainConfig(steps=200, rate=0.4), report=lambda e: losses.append(e["loss"]))
    assert losses[-1] < 0.2 * float(pairs.targets.var(0).mean()) and not network.training


def test_batches_smaller_than_the_set_use_all_of_it(make, pairs):
    network = seeded(lambda: make(16), 0)
    pretrain(network, pairs, PretrainConfig(steps=3, batch=16, schedule="constant"))
    again = seeded(lambda: make(16), 0)
    pretrain(again, pairs, PretrainConfig(steps=3, batch=16, schedule="constant"))
    assert torch.equal(network.head.weight, again.head.weight)
    with pytest.raises(Diverged):
        pretrain(again, pairs, PretrainConfig(steps=200, rate=1e20))


def test_contrast_is_taken_back_from_the_head(make, pairs):
    """The body learns from targets further from their mean; predictions are of the targets as they are."""
    centre, config = pairs.targets.mean(0), PretrainConfig(steps=60, rate=0.4)
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


def test_outputs_must_match(make, pairs):
    with pytest.raises(InputError, match="16 outputs"):
        pretrain(make(3), pairs, PretrainConfig(steps=1))


def test_cells(make, pairs, few, representations, small):
    cell = evaluate(pairs, few, representations.test, make, small)
    assert 0 < cell.error < 1 and set(cell.probes) == {f"{w}/{n}" for w in ("features", "output") for n in (5, 0)}
    nothing = evaluate(None, few, representations.test, make, small)
    assert nothing.method == NO_PRETRAINING and nothing.error is None and "output/0" not in nothing.probes
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


def test_the_number_of_workers_changes_no_number(few, representations, small, tmp_path):
    study = Study(
        few, representations, dataclasses.replace(small, distill=dataclasses.replace(small.distill, steps=20))
    )
    tasks = [Task(f"seed {s}", distil_seed, (study, s, tmp_path / f"{s}.safetensors")) for s in (0, 1)]
    tasks.append(Task("others", other_rows, (study, 0)))
    events = []
    one, two = run_tasks(tasks, 1, events.append), run_tasks(tasks, 2)
    for a, b in zip(one[:2], two[:2], strict=True):
        assert torch.equal(a[0].result.images, b[0].result.images) and a[1] == b[1]
    assert one[2] == two[2]
    assert [cell.method for cell in one[2]] == [NO_PRETRAINING, RANDOM, KMEANS, TEACHER] and one[0][1].method == KRR_ST
    assert {e["task"] for e in events} == {"seed 0", "seed 1", "others"}
    assert (tmp_path / "1.safetensors").is_file()


def test_an_error_in_a_worker_arrives(few, representations, small):
    broken = dataclasses.replace(small, distill=dataclasses.replace(small.distill, images=401))
    with pytest.raises(InputError, match="at most 400"):
        run_tasks([Task("seed 0", distil_seed, (Study(few, representations, broken), 0))], 1)


def test_random_with_labels_is_the_codes_side(few, representations, small):
    settings = dataclasses.replace(small, evaluate=dataclasses.replace(small.evaluate, random_targets="labels"))
    cell = other_rows(Study(few, representations, settings), 0)[1]
    assert cell.method == "random + labels" and cell.error is None and cell.probes
