"""The methods: each loss is its formula in plain PyTorch, steps lower it, and a run goes on to the same bits."""

import copy
import dataclasses

import pytest
import torch

from ssdd.checkpoint import Checkpoints, Stopped
from ssdd.config import METHOD_NAMES, DistillConfig, DmConfig, InputError
from ssdd.data import ImageSet, apply_dsa, draw_dsa
from ssdd.distillation import Job, distill, needs_teacher, target_size
from ssdd.distillation.loop import begin, inputs, run
from ssdd.distillation.methods import Step, method_of
from ssdd.models import seeded
from ssdd.parallel import Processes

LABELS = [name for name in METHOD_NAMES if name in ("dm", "frepo")]


def config(small, method, **changes) -> DistillConfig:
    quick = {"method": method, "steps": 12, "log_every": 4, "pool_steps": 6}
    return dataclasses.replace(small.distill, **quick | changes)


@pytest.fixture(scope="module")
def job(few, representations, make, teacher, small):
    """job(method, **changes): of the 400 digits."""

    def build(method, **changes):
        c = config(small, method, **changes)
        outputs = target_size(c, few, representations.dimension)
        known = representations.train if needs_teacher(c) else None
        return Job(few, known, lambda: make(outputs), c, seed=3, teacher=teacher if needs_teacher(c) else None)

    return build


def step_of(job, networks, size=12, learned=()):
    """A step in float64, of random images and targets."""
    method, g = method_of(job), torch.Generator().manual_seed(1)
    x = torch.randn(size + 30, 1, 8, 8, generator=g).double()
    y_b = method.targets[:30].double()
    y_s = method.start(method.targets[40 : 40 + size]).double()
    if method.learns_targets:
        y_s = (y_s + 0.1 * torch.randn(y_s.shape, generator=g)).requires_grad_()
    values = {name: value.double().requires_grad_() for name, (value, _) in method.parameters().items()}
    return Step(networks, x[:size].requires_grad_(), y_s, x[size:], y_b, values, torch.Generator().manual_seed(7))


def agree(job, step, wanted):
    """The method's loss is ``wanted``, and so are its gradients."""
    ours, theirs = method_of(job).loss(step), wanted
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-9)
    leaves = [x for x in (step.x_s, step.y_s, *step.learned.values()) if x.requires_grad]
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert float((a - b).norm()) < 1e-7 * float(b.norm())


def networks_of(job, count):
    return [seeded(job.make, s).double().eval() for s in range(count)]


def test_frepo_is_half_the_squared_error_of_label_codes_and_a_margin(job, few):
    job = job("frepo")
    assert torch.equal(method_of(job).targets, few.one_hot() - 0.1)
    step = step_of(job, networks_of(job, 2))
    errors = []
    for network in step.networks:
        f_s, f_b = network.features(step.x_s), network.features(step.x_b).detach()
        k_ss = f_s @ f_s.T
        ridge = 1e-6 * k_ss.trace() / len(k_ss) * torch.eye(len(k_ss)).double()  # the gradient flows through the trace
        predicted = f_b @ f_s.T @ torch.linalg.solve(k_ss + ridge, step.y_s)
        errors.append((0.5 * (predicted - step.y_b) ** 2).sum(1).mean())
    largest = step.y_s.sort(1).values
    margin = -torch.minimum(largest[:, -1] - largest[:, -2], torch.tensor(0.1, dtype=torch.float64)).mean()
    agree(job, step, torch.stack(errors).mean() + margin)


def test_frepo_codes_start_smaller_with_more_classes(job):
    method = method_of(job("frepo"))
    codes = torch.eye(40) - 1 / 40
    torch.testing.assert_close(method.start(codes), codes / 2)


@pytest.mark.parametrize("augment", [True, False])
def test_dm_is_the_distance_of_class_means_in_networks_in_train_mode(job, few, augment):
    job = job("dm", dm=DmConfig(augment=augment))
    step = step_of(job, networks_of(job, 2), size=20)
    x_s, x_b = step.x_s, step.x_b
    if augment:
        drawn = draw_dsa(torch.Generator().manual_seed(7))
        x_s, x_b = apply_dsa(x_s, drawn), apply_dsa(x_b, drawn)
    total = 0
    for network in step.networks:
        f_s, f_b = (copy.deepcopy(network).train().features(x) for x in (x_s, x_b))
        f_b = f_b.detach()
        for c in range(10):
            real, distilled = f_b[step.y_b.argmax(1) == c], f_s[step.y_s.argmax(1) == c]
            if len(real):
                mean = distilled.mean(0) if len(distilled) else 0
                total = total + ((real.mean(0) - mean) ** 2).sum() / 2
    agree(job, step, total)
    for network, fresh in zip(step.networks, networks_of(job, 2), strict=True):  # statistics are left as they were
        assert all(torch.equal(a, b) for a, b in zip(network.buffers(), fresh.buffers(), strict=True))


def test_dm_draws_equal_shares_of_the_classes_and_new_networks(job, few):
    state, batches = begin(job("dm", batch=50))
    _, y_b, _ = batches.draw(state.generator)
    assert y_b.sum(0).tolist() == [5.0] * 10
    first, second = ([m.network.head.weight for m in state.pool.draw()] for _ in range(2))
    assert not torch.equal(first[0], second[0]) and not state.pool.members
    assert not state.y_s.requires_grad
    with pytest.raises(InputError, match="hold none of class"):
        distill(job("dm", images=9))


@pytest.mark.parametrize("method", LABELS)
def test_a_random_start_has_as_many_images_of_each_class(job, few, method):
    rows = method_of(job(method, images=23)).initial_rows()
    counts = few.y_train[rows].bincount()
    assert len(set(rows.tolist())) == 23 and counts.tolist() == [3] * 3 + [2] * 7


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_steps_lower_the_loss(job, method):
    (_, first), *_, (_, last) = distill(job(method, images=20, lr=0.02, steps=80, log_every=20, pool_steps=40)).losses
    assert last < first - 0.05 * abs(first)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_run_goes_on_to_the_same_bits(job, method, tmp_path):
    whole, stops = distill(job(method)), []
    with pytest.raises(Stopped):
        distill(job(method), checkpoints=Checkpoints(tmp_path, stop=lambda: stops.append(1) or len(stops) > 8))
    rest = distill(job(method), checkpoints=Checkpoints(tmp_path))
    for a, b in ((whole.result.images, rest.result.images), (whole.result.targets, rest.result.targets)):
        assert torch.equal(a, b)
    assert whole.losses == rest.losses
    assert whole.result.method == method and not torch.equal(whole.result.images, whole.snapshots[0])
    first, batches = begin(job(method))
    first.pool.fill(inputs(job(method), first).detach(), first.y_s.detach())
    run(job(method), first, batches, until=5)
    second, _ = begin(dataclasses.replace(job(method), seed=99))
    second.load_state_dict(first.state_dict())
    assert {k: v.tolist() for k, v in second.learned.items()} == {k: v.tolist() for k, v in first.learned.items()}


@pytest.mark.parametrize("method", LABELS)
def test_labels_are_asked_for_before_any_work(few, make, small, method):
    unlabelled = ImageSet("few", few.x_train, few.x_test)
    one = ImageSet("few", few.x_train, few.x_test, torch.zeros(400, dtype=torch.int64), few.y_test)

    def none():
        raise AssertionError("no network is needed to find out")

    for data, why in ((unlabelled, "few has none"), (one, "few has one class")):
        with pytest.raises(InputError, match=f"method: '{method}' learns from labels.*{why}; use labelled images"):
            distill(Job(data, None, none, config(small, method)))
        with pytest.raises(InputError, match="learns from labels"):
            target_size(config(small, method), data, None)


@pytest.mark.parametrize("method", LABELS)
@pytest.mark.parametrize(
    "changes, named",
    [
        ({"targets": "tied"}, r"distill\.targets: 'tied' is for targets of a teacher"),
        ({"teacher_in_loop": "recomputed"}, r"distill\.teacher_in_loop: 'recomputed' is for targets of a teacher"),
        ({"real_view": "augmented", "views": 2}, r"distill\.views: expected 0"),
        ({"initial": "k-means"}, "representations: expected the teacher's"),
    ],
)
def test_settings_of_a_teacher_have_no_meaning_for_labels(few, make, small, method, changes, named):
    with pytest.raises(InputError, match=named):
        distill(Job(few, None, lambda: make(10), config(small, method, **changes)))


@pytest.mark.parametrize("method", LABELS)
def test_what_is_made_of_labels_says_so(job, method):
    result = distill(job(method)).result
    assert result.target_kind == "labels" and result.targets.shape == (12, 10) and result.config["method"] == method
    assert not needs_teacher(job(method).config) and needs_teacher(DistillConfig(method=method, initial="herding"))


def test_a_loss_that_is_no_mean_over_the_batch_is_not_shared_by_the_batch(job):
    shared = dataclasses.replace(job("dm"), processes=Processes(0, 2, "batch"))
    with pytest.raises(InputError, match="share: expected networks for the method 'dm', got 'batch'"):
        distill(shared)
