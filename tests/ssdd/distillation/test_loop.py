"""KRR-ST: the outer loss against the formula, the guarantees of the loop, and its effect."""

import dataclasses

import pytest
import torch

from ssdd.checkpoint import Checkpoints
from ssdd.config import DistillConfig, Diverged, InputError
from ssdd.data import ImageSet
from ssdd.distillation import Job, distill
from ssdd.distillation.loop import begin, decay_lr, identity, inputs, run
from ssdd.distillation.objective import outer_loss
from ssdd.distillation.stop import Stop
from ssdd.evaluation import evaluate
from ssdd.models import build
from ssdd.selection import random_subset
from ssdd.studies import baseline


@pytest.fixture(scope="module")
def student(make, representations):
    return lambda: make(representations.dimension)


def quick(small, **changes) -> DistillConfig:
    return dataclasses.replace(small.distill, **{"steps": 12, "log_every": 4, "pool_steps": 6, **changes})


def filled(job):
    """Return the state of a job with a full pool, and its batches."""
    state, batches = begin(job)
    state.pool.fill(inputs(job, state).detach(), state.y_s.detach())
    return state, batches


def test_outer_loss_is_equation_5_and_differentiates_to_the_pairs_only(student, few):
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = student().eval()
    x_s = few.preprocessing(few.x_train[:6]).requires_grad_()
    y_s = torch.randn(6, 16, generator=g).requires_grad_()
    x_b, y_b = few.preprocessing(few.x_train[10:40]), torch.randn(30, 16, generator=g)
    loss = outer_loss([network], x_s, y_s, x_b, y_b, DistillConfig(ridge=1e-3))
    loss.backward()
    assert all(p.grad is None and p.requires_grad for p in network.parameters())

    wide = network.double()  # the formula, written out in float64
    x, y = x_s.detach().double().requires_grad_(), y_s.detach().double().requires_grad_()
    f_s, f_b = wide.features(x), wide.features(x_b.double()).detach()
    k_ss, k_bs = f_s @ f_s.T + 1, f_b @ f_s.T + 1
    ridge = 1e-3 * k_ss.detach().trace()
    expected = (k_bs @ torch.linalg.solve(k_ss + ridge * torch.eye(6), y) - y_b).square().mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for ours, theirs in ((x_s.grad, x.grad), (y_s.grad, y.grad)):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_it_reduces_the_loss_and_beats_its_own_start(student, make, few, representations, small):
    settings = dataclasses.replace(small, pretrain=dataclasses.replace(small.pretrain, steps=300))
    config = dataclasses.replace(small.distill, images=20, steps=250, lr=0.02, pool_steps=100)
    found = distill(Job(few, representations.train, student, config))
    assert found.losses[-1][1] < 0.7 * found.losses[0][1]
    rows = random_subset(len(few.x_train), config.images, 0)
    real = baseline(few, rows, representations.train, method="random", seed=0)
    test = representations.test
    errors = [evaluate(s, few, test, make, settings).error for s in (found.result, real)]
    assert errors[0] < 0.9 * errors[1] < 1


def test_it_starts_from_the_random_baseline(student, few, representations, small):
    result = distill(Job(few, representations.train, student, quick(small, steps=0))).result
    rows = random_subset(len(few.x_train), 12, 0)
    start_set = baseline(few, rows, representations.train, method="random", seed=0)
    assert torch.equal(result.images, start_set.images) and torch.equal(result.targets, start_set.targets)


def test_same_seed_same_bits(student, few, representations, small):
    torch.manual_seed(1)
    a = distill(Job(few, representations.train, student, quick(small), seed=3))
    torch.manual_seed(2)  # the global generator has no effect
    b = distill(Job(few, representations.train, student, quick(small), seed=3))
    c = distill(Job(few, representations.train, student, quick(small), seed=4))
    assert torch.equal(a.result.images, b.result.images) and torch.equal(a.result.targets, b.result.targets)
    assert a.losses == b.losses and not torch.equal(a.result.images, c.result.images)


@pytest.mark.parametrize("counter", ["reset", "stuck"])
def test_state_written_and_read_continues_to_the_same_bits(student, few, representations, small, counter):
    job = Job(few, representations.train, student, quick(small, pool_counter=counter))
    whole, batches = filled(job)
    run(job, whole, batches)
    first, batches = filled(job)
    run(job, first, batches, until=7)
    second, _ = begin(dataclasses.replace(job, seed=99))
    second.load_state_dict(first.state_dict())
    run(job, second, batches)
    assert torch.equal(whole.x_s, second.x_s) and torch.equal(whole.y_s, second.y_s)
    assert whole.losses == second.losses and whole.pool.ages == second.pool.ages


def test_options_change_what_they_say(student, few, representations, small, teacher):
    r = representations.train
    plain = distill(Job(few, r, student, quick(small))).result
    fixed = distill(Job(few, r, student, quick(small, targets="fixed"))).result
    assert torch.equal(fixed.targets, r[random_subset(len(few.x_train), 12, 0)])
    assert not torch.equal(plain.targets, fixed.targets)
    raw = distill(Job(few, r, student, quick(small, support_input="raw"))).result
    assert raw.support_input == "raw" and torch.equal(raw.inputs(), raw.images)
    recomputed = distill(Job(few, r, student, quick(small, teacher_in_loop="recomputed"), teacher=teacher)).result
    assert torch.allclose(recomputed.images, plain.images, atol=1e-2)  # the same numbers up to rounding
    augmented = distill(Job(few, r, student, quick(small, real_view="augmented"), teacher=teacher)).result
    assert not torch.allclose(augmented.images, plain.images, atol=1e-3)


def test_events_and_metrics(student, few, representations, small):
    events = []
    found = distill(Job(few, representations.train, student, quick(small)), report=events.append)
    logged = [e for e in events if e["event"] == "distill"]
    assert [e["step"] for e in logged] == [4, 8, 12]
    assert {"loss", "lr", "untrained_share", "mean_age"} <= set(logged[0])
    assert found.result.metrics["mean_age"] == logged[-1]["mean_age"] > 0
    assert set(found.snapshots) == {0, 1, 3, 6, 12}


def test_rate_falls_linearly_to_its_floor():
    c = DistillConfig(lr=0.5, steps=100, lr_floor=0.001)
    assert [decay_lr(step, c) for step in (0, 50, 100)] == pytest.approx([0.5, 0.25025, 0.0005])


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_there(student, few, representations, small):
    config = quick(small, lr=1e30, steps=40)
    with pytest.raises(Diverged, match=r"distill\.lr") as stopped:
        distill(Job(few, representations.train, student, dataclasses.replace(config, log_every=1)))
    assert stopped.value.partial is None or bool(torch.isfinite(stopped.value.partial.images).all())

    job = Job(few, representations.train, student, quick(small))
    state, batches = filled(job)
    run(job, state, batches, until=4)
    kept = state.x_s.detach().clone()
    with torch.no_grad():
        state.y_s[0] = float("nan")
    with pytest.raises(Diverged) as stopped:
        run(job, state, batches)
    assert torch.equal(stopped.value.partial.images, kept) and stopped.value.partial.metrics["steps"] == 4


def test_input_that_does_not_fit(student, few, representations, small, make):
    r = representations.train
    with pytest.raises(InputError, match="at most 400"):
        distill(Job(few, r, student, quick(small, images=401)))
    with pytest.raises(InputError, match="representations"):
        distill(Job(few, r[:10], student, quick(small)))
    with pytest.raises(InputError, match="representations"):
        distill(Job(few, r.double(), student, quick(small)))
    with pytest.raises(InputError, match="outputs"):
        distill(Job(few, r, lambda: make(3), quick(small)))
    with pytest.raises(InputError, match="need the teacher"):
        distill(Job(few, r, student, quick(small, real_view="augmented")))


def test_as_many_distilled_images_as_there_are(student, few, representations, small):
    ten = ImageSet("ten", few.x_train[:10], few.x_test)
    found = distill(Job(ten, representations.train[:10], student, quick(small, images=10)))
    assert len(found.result) == 10


def test_a_teacher_whose_output_does_not_match(student, few, representations, small):
    config = quick(small, teacher_in_loop="recomputed")
    with pytest.raises(InputError, match=r"teacher: expected 16 numbers per image.*got \[2, 3\]"):
        distill(Job(few, representations.train, student, config, teacher=lambda x: torch.zeros(len(x), 3)))


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(student, few, representations, small, tmp_path):
    job = Job(few, representations.train, student, quick(small, log_every=4))
    checkpoints = Checkpoints(tmp_path, every=0)
    checkpoints.begin(identity(job))
    state, batches = filled(job)
    run(job, state, batches, until=5, stop=Stop(job, checkpoints))
    with torch.no_grad():
        state.y_s[0] = float("nan")
    with pytest.raises(Diverged, match="is nan between steps 4 and 6"):
        run(job, state, batches, stop=Stop(job, checkpoints))
    assert [file.stem[-1] for file in checkpoints.files()] == ["4", "5"]
    found = distill(job, checkpoints=checkpoints)  # goes on from step 5
    assert torch.equal(found.result.images, distill(job).result.images)


def test_a_checkpoint_of_other_data_or_another_network_is_refused(
    student, few, representations, small, make, digits, tmp_path
):
    config, r = quick(small), representations.train
    distill(Job(few, r, student, config), checkpoints=Checkpoints(tmp_path, every=0))
    others = ImageSet("few", digits.x_train[400:800], few.x_test)
    wide = lambda: build("convnet-8-32", 1, (8, 8), 16)  # noqa: E731
    for arguments, named in [
        ((others, r, student, config), "data"),
        ((few, r, wide, config), "network"),
        ((few, r + 1, student, config), "representations"),
        ((few, r, student, quick(small, pool_counter="stuck")), r"distill\.pool_counter = 'reset' there"),
    ]:
        with pytest.raises(InputError, match=named):
            distill(Job(*arguments), checkpoints=Checkpoints(tmp_path, every=0))
