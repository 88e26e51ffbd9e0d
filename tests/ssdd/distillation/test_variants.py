"""The named variants of KRR-ST: each has the effect that its docstring says, and none changes plain KRR-ST."""

import dataclasses
import os

import pytest
import torch
from torch import nn

from ssdd.artifact import Preprocessing
from ssdd.checkpoint import Checkpoints, Stopped
from ssdd.config import PRESETS, DistillConfig, InputError, deprecations, official
from ssdd.distillation import Job, distill
from ssdd.distillation.batches import represent_views
from ssdd.distillation.loop import begin, inputs, run, support
from ssdd.distillation.objective import outer_loss, prediction_loss, realism, total_variation
from ssdd.models import frozen, seeded
from ssdd.parallel import Processes
from ssdd.selection import kmeans_medoids
from ssdd.teachers import Teacher


@pytest.fixture(scope="module")
def student(make, representations):
    return lambda: make(representations.dimension)


def quick(small, **changes) -> DistillConfig:
    return dataclasses.replace(small.distill, **{"steps": 12, "log_every": 4, "pool_steps": 6, **changes})


def problem(student, few, size=6):
    g = torch.Generator().manual_seed(0)
    x_s, x_b = few.preprocessing(few.x_train[:size]), few.preprocessing(few.x_train[10:40])
    return (
        x_s.requires_grad_(),
        torch.randn(size, 16, generator=g).requires_grad_(),
        x_b,
        torch.randn(30, 16, generator=g),
    )


def gradients(loss, x_s, y_s):
    return torch.autograd.grad(loss, (x_s, y_s))


def test_several_networks_are_the_mean_of_each_alone(student, few):
    networks = [seeded(student, s).eval() for s in range(3)]
    x_s, y_s, x_b, y_b = problem(student, few)
    config = DistillConfig(ridge=1e-3)
    together = outer_loss(networks, x_s, y_s, x_b, y_b, config)
    alone = torch.stack([outer_loss([n], x_s, y_s, x_b, y_b, config) for n in networks]).mean()
    assert float(together.detach()) == pytest.approx(float(alone.detach()), rel=1e-5)
    for ours, theirs in zip(gradients(together, x_s, y_s), gradients(alone, x_s, y_s), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_several_networks_are_different_ones_and_all_advance(student, few, representations, small):
    job = Job(few, representations.train, student, quick(small, pool=3, networks=3, pool_steps=50, steps=4))
    state, batches = begin(job)
    state.pool.fill(inputs(job, state).detach(), state.y_s.detach())
    before = [m.age for m in state.pool.members]
    run(job, state, batches)
    assert [m.age for m in state.pool.members] == [age + 4 for age in before] and state.pool.drawn == 12
    with pytest.raises(InputError, match=r"networks: expected at most pool \(3\), got 4"):
        quick(small, pool=3, networks=4)


@pytest.mark.parametrize("loss", ["mse", "cosine", "cross-entropy"])
def test_a_perfect_prediction_costs_nothing_and_gradients_reach_the_pairs(student, few, loss):
    config = DistillConfig(loss=loss, temperature=0.5, ridge=1e-3)
    y = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    assert float(prediction_loss(y, y[0], config)) > 0.1
    assert float(prediction_loss(y[:1], y[0], config)) == pytest.approx(0, abs=1e-5)
    x_s, y_s, x_b, y_b = problem(student, few)
    value = outer_loss([seeded(student, 0).eval()], x_s, y_s, x_b, y_b, config)
    assert all(float(g.abs().sum()) > 0 for g in gradients(value, x_s, y_s))


def test_the_losses_against_their_formulas():
    g = torch.Generator().manual_seed(2)
    p, y = torch.randn(7, 4, generator=g).double(), torch.randn(7, 4, generator=g).double()
    cosine = 1 - (p * y).sum(1) / p.norm(dim=1) / y.norm(dim=1)
    assert float(prediction_loss(p, y, DistillConfig(loss="cosine"))) == pytest.approx(float(cosine.mean()))
    truth, output = torch.softmax(y / 2, 1), torch.softmax(p / 2, 1)
    expected = 4 * (truth * (truth / output).log()).sum(1).mean()
    config = DistillConfig(loss="cross-entropy", temperature=2.0)
    assert float(prediction_loss(p, y, config)) == pytest.approx(float(expected))


def test_targets_tied_to_the_teacher(student, few, representations, teacher, small):
    config = quick(small, targets="tied")
    job = Job(few, representations.train, student, config, teacher=teacher)
    result = distill(job).result
    expected = teacher(few.preprocessing.normalise(result.images))
    torch.testing.assert_close(result.targets, expected, rtol=1e-4, atol=1e-5)
    state, _ = begin(job)
    x_s, y_s = support(job, state)
    (through_targets,) = torch.autograd.grad(y_s.square().sum(), state.x_s)
    assert float(through_targets.abs().sum()) > 0 and all(p.grad is None for p in teacher.module.parameters())
    with pytest.raises(InputError, match="targets='tied'"):
        distill(Job(few, representations.train, student, config))


@pytest.mark.parametrize("loop, of_batch", [("cached", []), ("recomputed", [50])])
def test_with_tied_targets_a_real_batch_goes_through_the_teacher_only_if_recomputed(
    student, few, representations, teacher, small, loop, of_batch
):
    asked = []

    def counted(x):
        asked.append(len(x))
        return teacher(x)

    config = quick(small, targets="tied", batch=50, teacher_in_loop=loop)
    distill(Job(few, representations.train, student, config, teacher=counted))
    tied = [config.images, config.images]  # for the loss, and after the step
    assert asked == [2, *((of_batch + tied) * config.steps)]  # first two images, to check the output


def test_what_needs_the_teacher(small):
    def needs(**changes):
        config = quick(small, **changes)
        return config.needs_teacher, config.batches_need_teacher

    assert needs() == (False, False) and needs(targets="tied") == (True, False)
    assert needs(teacher_in_loop="recomputed") == needs(real_view="augmented") == (True, True)
    assert needs(real_view="augmented", views=2) == (True, False)


def test_the_gradient_passes_through_the_view_of_the_images(student, few, representations, small):
    job = Job(few, representations.train, student, quick(small, support_view="augmented", crop_pad=1))
    state, _ = begin(job)
    views = [support(job, state)[0] for _ in range(2)]
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[0], inputs(job, state))
    torch.autograd.grad(views[0].sum(), state.x_s)
    assert not torch.equal(distill(job).result.images, state.x_s)


def test_known_views_have_the_teachers_representations_and_it_runs_once(student, few, representations, small, teacher):
    asked = []

    def counted(x):
        asked.append(len(x))
        return teacher(x)

    config = quick(small, real_view="augmented", views=3, batch=50)
    n = len(few.x_train)
    result = distill(Job(few, representations.train, student, config, teacher=counted)).result
    assert sum(asked) == 3 * n + 2  # two of them to check its output
    again = distill(Job(few, representations.train, student, config, teacher=teacher)).result
    assert torch.equal(result.images, again.images)
    job = Job(few, representations.train, student, config, teacher=counted)
    state, batches = begin(job)
    batches.views = represent_views(job)
    asked.clear()
    seen = set()
    for _ in range(4):
        x_b, y_b, _ = batches.draw(state.generator)
        torch.testing.assert_close(y_b, teacher(x_b), rtol=1e-4, atol=1e-4)
        seen |= {tuple(row.tolist()) for row in y_b}
    known = {tuple(row.tolist()) for row in batches.views[1]}
    assert not asked and seen <= known and len(seen) > 100 and len(known) > 2 * n  # views of an image differ
    for wrong in ({"real_view": "plain"}, {"teacher_in_loop": "recomputed"}):
        with pytest.raises(InputError, match="views: expected 0"):
            dataclasses.replace(config, **wrong)


def test_known_views_go_on_to_the_same_bits(student, few, representations, small, teacher, tmp_path):
    config, stops = quick(small, real_view="augmented", views=2), []
    whole = distill(Job(few, representations.train, student, config, teacher=teacher)).result
    with pytest.raises(Stopped):
        first = Checkpoints(tmp_path, stop=lambda: stops.append(1) or len(stops) > 8)
        distill(Job(few, representations.train, student, config, teacher=teacher), checkpoints=first)
    rest = distill(Job(few, representations.train, student, config, teacher=teacher), checkpoints=Checkpoints(tmp_path))
    assert torch.equal(whole.images, rest.result.images) and torch.equal(whole.targets, rest.result.targets)


def views_asked(monkeypatch):
    """Record the number of images in each later call of the teacher."""
    asked, before = [], Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, x: asked.append(len(x)) or before(self, x))
    return asked


def test_known_views_are_kept_on_disk_and_mapped(few, small, teacher, student, representations, tmp_path, monkeypatch):
    config, asked = quick(small, real_view="augmented", views=2), views_asked(monkeypatch)
    job, n = Job(few, representations.train, student, config, teacher=teacher), len(few.x_train)
    plain = distill(job).result
    assert sum(asked) == 2 * n + 2 and not list(tmp_path.iterdir())
    for count in (2 * n + 2, 2):  # a second or resumed run calls the teacher only to check its output
        asked.clear()
        found = distill(job, cache=tmp_path).result
        assert sum(asked) == count and torch.equal(found.images, plain.images)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    crops, known = represent_views(job, tmp_path)
    assert torch.equal(known, represent_views(job)[1]) and file.stat().st_mtime_ns == written
    with open("/proc/self/maps") as maps:
        assert str(file) in maps.read()
    known = known.clone()  # no longer mapped: the file is cut short next
    file.write_bytes(file.read_bytes()[:500])  # damaged: computed again
    assert torch.equal(represent_views(job, tmp_path)[1], known)
    other = Teacher(teacher.module, Preprocessing((0.5,), (0.5,)))
    more, wider = (dataclasses.replace(config, **change) for change in ({"views": 3}, {"crop_pad": 2}))
    for seed, changed, theirs in ((1, config, teacher), (0, more, teacher), (0, wider, teacher), (0, config, other)):
        before = set(tmp_path.iterdir())
        _, new = represent_views(dataclasses.replace(job, config=changed, seed=seed, teacher=theirs), tmp_path)
        assert len(set(tmp_path.iterdir()) - before) == 1 and not torch.equal(new[: 2 * n], known)


def test_of_several_processes_one_writes_known_views(
    student, representations, few, small, teacher, tmp_path, monkeypatch
):
    """A reader calls ``agree`` once per part of the writer, then maps the written file. It does not call the
    teacher."""
    config = quick(small, real_view="augmented", views=3)
    job = Job(few, representations.train, student, config, teacher=teacher)

    class Writer(Processes):
        turns = 0

        def agree(self, stop):
            Writer.turns += 1
            return stop

        def wait(self):
            pass

    class Reader(Writer):
        turns = 0

        def agree(self, stop):
            assert not stop
            Reader.turns += 1
            if Reader.turns == 1:
                return True  # the writer's answer
            if Reader.turns == Writer.turns:
                os.rename(tmp_path / "writer", tmp_path / "reader")
            return False

    _, expected = represent_views(dataclasses.replace(job, processes=Writer(0, 2)), tmp_path / "writer")
    asked = views_asked(monkeypatch)
    _, found = represent_views(dataclasses.replace(job, processes=Reader(1, 2)), tmp_path / "reader")
    assert Writer.turns == 4 and torch.equal(found, expected) and not asked


def test_views_without_finite_representations_are_not_cached(student, few, small, tmp_path):
    broken = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), few.preprocessing)
    nn.init.constant_(broken.module[1].bias, float("nan"))
    config = quick(small, real_view="augmented", views=1)
    with pytest.raises(InputError, match="not finite"):
        represent_views(Job(few, torch.zeros(400, 4), student, config, teacher=broken), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_start_from_medoids(student, few, representations, small):
    config = quick(small, initial="k-means", steps=0)
    result = distill(Job(few, representations.train, student, config, seed=3)).result
    rows = kmeans_medoids(representations.train, config.images, 3)
    assert torch.equal(result.targets, representations.train[rows])


def test_the_realism_penalties(few):
    flat, steps = torch.full((2, 1, 4, 4), 0.3), torch.arange(4.0).view(1, 1, 1, 4).expand(2, 1, 4, 4)
    assert float(total_variation(flat)) == 0 and float(total_variation(steps)) == pytest.approx(1)
    config = DistillConfig(tv_weight=0.5, init_weight=3.0)
    assert float(realism(steps, steps - 0.1, config)) == pytest.approx(0.5 + 3 * 0.01)


def test_realism_keeps_images_smooth_and_near(student, few, representations, small):
    def images(**changes):
        config = quick(small, steps=40, lr=0.02, pool_steps=50, **changes)
        return distill(Job(few, representations.train, student, config)).result.images

    plain, smooth, near = images(), images(tv_weight=1.0), images(init_weight=50.0)
    initial = begin(Job(few, representations.train, student, quick(small)))[0].x_s.detach()
    assert float(total_variation(smooth)) < 0.8 * float(total_variation(plain))
    assert float((near - initial).square().mean()) < 0.3 * float((plain - initial).square().mean())


def test_the_best_read_out_is_the_result(student, few, representations, small):
    config = quick(small, held_out=80, readout_every=4, readout_steps=10)
    events = []
    result = distill(Job(few, representations.train, student, config), report=events.append).result
    read = {e["step"]: e["error"] for e in events if e["event"] == "readout"}
    assert list(read) == [4, 8, 12]
    assert result.metrics["readout"] == min(read.values())
    assert result.metrics["readout_step"] == min(read, key=lambda step: read[step])
    state, batches = begin(Job(few, representations.train, student, config))
    assert len(batches.rows) == 320
    network = state.pool.outsider(0, 10, result.inputs(), result.targets)
    held = torch.ones(400, dtype=torch.bool)
    held[batches.rows] = False
    with torch.no_grad():
        predicted = network.head(frozen(network)(few.preprocessing(few.x_train[held])))
    expected = representations.train[held]
    error = float((predicted - expected).square().sum() / (expected - expected.mean(0)).square().sum())
    assert error == pytest.approx(min(read.values()), rel=1e-3)
    with pytest.raises(InputError, match="held_out: readout_every needs"):
        quick(small, readout_every=4)
    with pytest.raises(InputError, match="held_out: expected less than 388"):
        distill(Job(few, representations.train, student, quick(small, held_out=388)))


def test_a_read_out_changes_no_step(student, few, representations, small):
    plain = distill(Job(few, representations.train, student, quick(small, held_out=80))).result
    read = distill(Job(few, representations.train, student, quick(small, held_out=80, readout_every=12))).result
    assert torch.equal(plain.images, read.images)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"loss": "cosine"}, "distill.loss = 'cosine' .*; use 'mse'"),
        ({"loss": "cross-entropy"}, "distill.loss = 'cross-entropy' .* the method 'clp-dd'"),
        ({"targets": "tied"}, "distill.targets = 'tied' .*; use 'learned'"),
        ({"support_view": "augmented"}, "distill.support_view = 'augmented' .* distill.transforms"),
        ({"held_out": 80}, "distill.held_out = 80 .* `ssdd evaluate`"),
    ],
)
def test_an_option_that_goes_warns_once_and_works(student, few, representations, teacher, small, changes, named):
    job = Job(few, representations.train, student, quick(small, steps=1, **changes), teacher=teacher)
    events = []
    with pytest.warns(DeprecationWarning, match=named) as caught:
        assert len(distill(job, report=events.append).result) == 12
    [warning] = [w for w in caught if "goes in version" in str(w.message)]
    assert warning.filename == __file__  # the line to change, not one of the package
    assert [e["message"] for e in events if e["event"] == "warning"] == [str(warning.message)]


def test_no_preset_has_an_option_that_goes():
    for settings in PRESETS.values():
        assert not deprecations(settings.distill) and not deprecations(official(settings).distill)
