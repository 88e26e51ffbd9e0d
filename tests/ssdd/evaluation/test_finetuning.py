"""Fine-tuning: the published recipe against plain PyTorch, shares of the labels, and targets that do not fit."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from ssdd.config import FINETUNE, PRESETS, Diverged, FinetuneConfig, InputError, differences
from ssdd.data import ImageSet, Order, crop_and_flip
from ssdd.evaluation import check_targets, evaluate_on, finetune, steps_for, why_no_transfer
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


def test_the_published_recipe_is_the_papers():
    config = FINETUNE["published"]
    assert (config.share, config.steps, config.small_set_steps, config.batch) == (1.0, 10_000, 5_000, 256)
    assert (config.lr, config.weight_decay, config.crop_pad) == (0.01, 5e-4, 4)
    assert (config.normalise, config.last_batch) == ("target", "kept")
    assert all(PRESETS[name].finetune == config for name in ("cifar100", "tinyimagenet", "imagenet64", "imagenette"))
    assert FINETUNE["scaled"].share == 1.0 and FINETUNE["scaled"].steps * FINETUNE["scaled"].batch < 20_000


def test_small_sets_take_their_own_number_of_steps(few):
    config = FINETUNE["published"]
    large = ImageSet("large", torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8), few.x_test[:, :1, :1])
    assert steps_for(few, config) == 5_000 and steps_for(large, config) == 10_000
    assert steps_for(few, FinetuneConfig(steps=7)) == 7


def test_every_row_comes_once_per_epoch_and_the_last_batch_is_kept_or_dropped():
    for kept, sizes in ((True, [4, 4, 2]), (False, [4, 4])):
        order = Order(10, 4, torch.Generator().manual_seed(0), kept)
        for _ in range(2):
            epoch = [order.next() for _ in sizes]
            assert [len(rows) for rows in epoch] == sizes and len(torch.cat(epoch).unique()) == sum(sizes)
        assert order.per_epoch == len(sizes)
    single = Order(9, 4, torch.Generator().manual_seed(0))
    assert [len(single.next()) for _ in range(4)] == [
        4,
        4,
        4,
        4,
    ] and single.per_epoch == 2  # BatchNorm cannot train on one image
    assert len(Order(1, 4, torch.Generator()).next()) == 1


def test_it_is_the_published_recipe_written_in_plain_pytorch(make, few):
    """SGD with momentum and weight decay on everything, cosine step by step, the target's own mean and std."""
    pretrained = seeded(lambda: make(16), 0)
    pretrained.train()(torch.randn(64, 1, 8, 8))  # running statistics that are carried over
    pretrained.eval()
    data = ImageSet("target", few.x_train[:50] // 2, few.x_test[:40], few.y_train[:50], few.y_test[:40])
    steps, found = 7, []
    config = dataclasses.replace(FINETUNE["published"], steps=steps, small_set_steps=0, batch=20, crop_pad=1, lr=0.1)
    accuracy = finetune(pretrained, few.preprocessing, data, config, seed=3, report=found.append)

    model = copy.deepcopy(pretrained).train()
    model.head = seeded(lambda: torch.nn.Linear(model.dimension, data.classes), 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    g = torch.Generator().manual_seed(3)
    pixels = data.x_train.permute(0, 3, 1, 2).float() / 255
    mean, std = pixels.double().mean().float(), pixels.double().std(correction=0).float()
    labelled = share_of_labels(data.y_train, 1.0, 3)
    assert sorted(labelled.tolist()) == list(range(50))
    left = []
    for _ in range(steps):
        left = left or list(labelled[torch.randperm(50, generator=g)].split(20))  # 20, 20, 10
        rows = left.pop(0)
        x = (crop_and_flip(pixels[rows], 1, g) - mean) / std
        loss = F.cross_entropy(model(x), data.y_train[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert found[-1]["step"] == steps and found[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    with torch.no_grad():
        x = (data.x_test.permute(0, 3, 1, 2).float() / 255 - mean) / std
        right = model.eval()(x).argmax(1) == data.y_test
    assert accuracy == pytest.approx(100 * float(right.float().mean()), abs=2.6)  # one image of 40


def test_the_sources_normalisation_is_another_choice(make, few):
    network, found = seeded(lambda: make(16), 0).eval(), []
    dark = ImageSet("dark", few.x_train // 4, few.x_test // 4, few.y_train, few.y_test)
    for normalise in ("target", "source"):
        config = FinetuneConfig(share=0.2, steps=1, normalise=normalise)
        finetune(network, few.preprocessing, dark, config, report=found.append)
    assert found[0]["loss"] != found[1]["loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": None}, "its training images have no labels"),
        ({"y_test": None}, "its test images have no labels"),
        ({"y_test": torch.zeros(100, dtype=torch.int64)}, "no test images of class 1, 2, 3, 4, 5 and 4 more"),
        ({"y_train": torch.arange(400) % 9}, "no training images of class 9"),
    ],
)
def test_a_target_that_does_not_fit_is_refused_before_any_training(make, few, small, change, message):
    target = dataclasses.replace(few, name="cars", **change)
    assert message in why_no_transfer(target) and why_no_transfer(few) == ""
    settings = dataclasses.replace(small, finetune=FinetuneConfig(share=1.0))
    events = []
    with pytest.raises(InputError, match=f"target Cars: cars: .*{message}"):
        evaluate_on(None, {"few": few, "Cars": target}, {}, make, settings, report=events.append)
    assert events == []


def test_a_class_without_test_images_is_kept_if_asked(few):
    target = dataclasses.replace(few, name="cars", y_test=few.y_test.clamp(max=8))
    missing = dataclasses.replace(few, name="cars", y_train=few.y_train.clamp(max=8))
    config = FinetuneConfig(share=1.0, untested_classes="kept")
    check_targets({"Cars": target}, config)
    with pytest.raises(InputError, match="no training images of class 9"):
        check_targets({"Cars": missing}, config)
    with pytest.raises(InputError, match="no test images of class 9; .* finetune.untested_classes to kept"):
        check_targets({"Cars": target}, FinetuneConfig(share=1.0))


def test_cells_that_were_fine_tuned_the_old_way_count_as_others():
    """What version 0.1 did is not the default: a cell without these settings was computed with its way."""
    here = {"finetune": dataclasses.asdict(FinetuneConfig(share=0.1))}
    old = {"finetune": {key: here["finetune"][key] for key in ("share", "steps", "batch", "lr")}}
    assert differences(old, here) == {
        "finetune.last_batch": ("dropped", "kept"),
        "finetune.normalise": ("source", "target"),
        "finetune.untested_classes": ("kept", "error"),
    }
    here["finetune"]["share"] = old["finetune"]["share"] = 0.0
    assert differences(old, here) == {}
