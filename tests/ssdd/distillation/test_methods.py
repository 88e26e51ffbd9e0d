"""The methods: each loss is its formula in plain PyTorch, steps lower it, and a run goes on to the same bits."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from ssdd.checkpoint import Checkpoints, Stopped
from ssdd.config import METHOD_NAMES, ClpDdConfig, DistillConfig, DmConfig, InputError, KipConfig, RfadConfig
from ssdd.data import ImageSet, apply_dsa, draw_dsa
from ssdd.distillation import Job, distill, needs_teacher, target_size
from ssdd.distillation.loop import begin, inputs, run
from ssdd.distillation.methods import Step, method_of
from ssdd.distillation.networks import Normal
from ssdd.models import seeded
from ssdd.parallel import Processes
from ssdd.selection import kmeans_centres

LABELS = [name for name in METHOD_NAMES if name != "krr-st"]
WITHOUT_TEACHER = [name for name in LABELS if name != "clp-dd"]


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


def agree(job, step, expected):
    """The method's loss is the given one, and so are its gradients."""
    ours, theirs = method_of(job).loss(step), expected
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


def ridged(k_ss, amount):
    """K + amount tr(K)/S I; the gradient flows through the trace."""
    return k_ss + amount * k_ss.trace() / len(k_ss) * torch.eye(len(k_ss), dtype=k_ss.dtype)


@pytest.mark.parametrize("kind", ["labels", "prototypes"])
def test_clp_dd_is_the_cross_entropy_of_predictions_from_the_teachers_features(job, few, teacher, kind):
    job = job("clp-dd", clp_dd=ClpDdConfig(targets=kind, prototypes=7, temperature=0.3, ridge=1e-3))
    method, step = method_of(job), step_of(job, [])
    wide = copy.deepcopy(teacher.module).double().eval()
    fixed = dataclasses.replace(job, teacher=lambda x: wide(x))
    [member] = method_of(fixed).networks(step.generator).draw()
    step = dataclasses.replace(step, networks=[member.network])
    f_s, f_b = wide(step.x_s), wide(step.x_b).detach()
    predicted = f_b @ f_s.T @ torch.linalg.solve(ridged(f_s @ f_s.T, 1e-3), step.y_s)
    agree(job, step, -(step.y_b * torch.log_softmax(predicted / 0.3, 1)).sum(1).mean())
    assert torch.equal(method.targets.argmax(1), few.y_train) == (kind == "labels")
    assert method.target_kind == {"labels": "labels", "prototypes": "assignments"}[kind]


def test_assignments_are_shares_of_the_prototypes(job, representations, few):
    c = ClpDdConfig(targets="prototypes", prototypes=6, sharpness=2.0)
    method, r = method_of(job("clp-dd", clp_dd=c)), representations.train.double()
    centres = kmeans_centres(r, 6, 3)
    squares = (r[:, None] - centres).square().sum(2)
    scores = torch.exp(-2 * squares / squares.min(1).values.mean())
    torch.testing.assert_close(method.targets.double(), scores / scores.sum(1, keepdim=True), rtol=1e-3, atol=1e-5)
    unlabelled = dataclasses.replace(job("clp-dd", clp_dd=c), data=ImageSet("few", few.x_train, few.x_test))
    result = distill(dataclasses.replace(unlabelled, config=dataclasses.replace(unlabelled.config, steps=2))).result
    assert result.target_kind == "assignments" and result.targets.shape == (12, 6)
    with pytest.raises(InputError, match=r"clp_dd\.prototypes: expected at most 400"):
        distill(job("clp-dd", clp_dd=ClpDdConfig(targets="prototypes", prototypes=401)))
    with pytest.raises(InputError, match="the method 'clp-dd' need the teacher itself"):
        distill(dataclasses.replace(job("clp-dd", clp_dd=c), teacher=None))


@pytest.mark.parametrize("platt", [True, False])
def test_rfad_is_the_loss_of_predictions_from_the_joined_features_of_random_networks(job, platt):
    job = job("rfad", rfad=RfadConfig(networks=3, platt=platt))
    step = step_of(job, networks_of(job, 3))
    f_s, f_b = (torch.cat([n.features(x) for n in step.networks], 1) for x in (step.x_s, step.x_b))
    width = f_s.shape[1]
    k_ss, k_bs = 2 * f_s @ f_s.T / width + 0.01, 2 * f_b.detach() @ f_s.T / width + 0.01
    predicted = k_bs @ torch.linalg.solve(ridged(k_ss, 5e-3), step.y_s)
    if platt:
        agree(job, step, F.cross_entropy(step.learned["platt"].exp() * predicted, step.y_b.argmax(1)))
    else:
        agree(job, step, 0.5 * (predicted - step.y_b).square().mean())


def test_rfad_draws_new_networks_with_normal_weights_and_learns_its_scale(job):
    run_of = job("rfad", rfad=RfadConfig(networks=4, platt_lr=0.5))
    state, batches = begin(run_of)
    drawn = state.pool.draw()
    head = drawn[0].network.head.weight.detach().clone()
    weights = torch.cat([m.network.backbone.blocks[4].weight.detach().flatten() for m in drawn])
    assert len(drawn) == 4 and float(weights.std()) == pytest.approx((2 / 72) ** 0.5, rel=0.05)
    biases = torch.cat([m.network.backbone.blocks[4].bias.detach() for m in drawn])
    assert float(biases.std()) == pytest.approx(0.1, rel=0.4)
    assert not torch.equal(state.pool.draw()[0].network.head.weight, head)
    run(run_of, state, batches, until=1)
    assert float(state.learned["platt"].detach().abs()) == pytest.approx(0.5, rel=1e-3)  # AdamW's first step is its lr
    assert state.optimizer.param_groups[0]["lr"] == run_of.config.lr


class Scaled(torch.nn.Module):
    """A layer with random numbers of its own, which has no normal weights."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.rand(1))

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("own_layer", [False, True])
def test_random_networks_follow_from_their_seeds_alone(job, own_layer):
    base = job("rfad", rfad=RfadConfig(networks=2))

    def make():
        network = base.make()
        if own_layer:
            network.backbone = torch.nn.Sequential(network.backbone, Scaled())
        return network

    def drawn(skip):
        pool = Normal(dataclasses.replace(base, make=make), torch.Generator().manual_seed(5), 2)
        states = [[copy.deepcopy(m.network.state_dict()) for m in pool.draw()] for _ in range(3)]
        late = Normal(dataclasses.replace(base, make=make), torch.Generator().manual_seed(5), 2)
        for _ in range(2 * skip):
            torch.randint(0, 2**62, (), generator=late.generator)
        return states, [m.network.state_dict() for m in late.draw()]

    states, third = drawn(skip=2)  # as after a run that went on: the first two draws were another pool's
    for ours, theirs in zip(states[2], third, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    changing = [key for key in third[0] if key.endswith(("weight", "bias")) and ".1." not in key and ".5." not in key]
    changing += ["backbone.1.factor"] if own_layer else []
    for a, b in ((states[0][0], states[0][1]), (states[0][0], states[1][0])):
        assert changing and not any(torch.equal(a[key], b[key]) for key in changing)


@pytest.mark.parametrize("kernel", ["ntk", "nngp"])
def test_kip_is_half_the_squared_error_with_the_kernel_of_wide_networks(job, kernel):
    job = job("kip", kip=KipConfig(kernel=kernel, depth=2, ridge=1e-4))
    step = step_of(job, [])

    def layers(x, z):
        """Covariances of a ReLU network with two hidden layers, written out: (NNGP, NTK)."""
        own = [2 * p.square().sum(1) / 64 + 0.01 for p in (x, z)]
        k = tangent = 2 * x @ z.T / 64 + 0.01
        for _ in range(2):
            norms = (own[0][:, None] * own[1][None]).sqrt()
            same = torch.eye(*k.shape, dtype=torch.bool) if x is z else torch.zeros(k.shape, dtype=torch.bool)
            c = torch.where(same, 0.5, k / norms)  # the angle of a point with itself has no slope
            angle = torch.where(same, 0.0, torch.acos(c))
            sine = torch.where(same, 0.0, (1 - c * c).sqrt())
            cosine = torch.where(same, 1.0, c)
            slope = 1 - angle / torch.pi
            k = norms * (sine + (torch.pi - angle) * cosine) / torch.pi + 0.01
            tangent = tangent * slope + k
            own = [o + 0.01 for o in own]
        return k if kernel == "nngp" else tangent

    x_s, x_b = step.x_s.flatten(1), step.x_b.flatten(1)
    predicted = layers(x_b, x_s) @ torch.linalg.solve(ridged(layers(x_s, x_s), 1e-4), step.y_s)
    agree(job, step, 0.5 * (predicted - step.y_b).square().mean())


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


@pytest.mark.parametrize("method", WITHOUT_TEACHER)
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
    assert needs_teacher(job(method).config) == (method not in WITHOUT_TEACHER)
    assert needs_teacher(DistillConfig(method=method, initial="herding"))


def test_a_loss_that_is_no_mean_over_the_batch_is_not_shared_by_the_batch(job):
    shared = dataclasses.replace(job("dm"), processes=Processes(0, 2, "batch"))
    with pytest.raises(InputError, match="share: expected networks for the method 'dm', got 'batch'"):
        distill(shared)
