"""The pool: initial ages, and replacement as in the paper and as in the published code."""

import pytest
import torch

from ssdd.config import DistillConfig
from ssdd.data import ImageSet
from ssdd.distillation import Job
from ssdd.distillation.pool import Interrupted, Pool
from ssdd.models import build, seeded

X, Y = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 2)

DATA = ImageSet("zeros", torch.zeros(4, 4, 4, 1, dtype=torch.uint8), torch.zeros(1, 4, 4, 1, dtype=torch.uint8))


def make():
    return build("convnet-2", 1, (4, 4), 2)


def pool(seed=0, **changes):
    config = DistillConfig(**{"pool": 4, "pool_steps": 10, **changes})
    p = Pool(Job(DATA, Y, make, config), torch.Generator().manual_seed(seed))
    p.fill(X, Y)
    return p


def simulate(counter: str, draws: int = 600) -> Pool:
    p = pool(pool_counter=counter)
    for _ in range(draws):
        p.advance(p.draw(), X, Y)
    return p


def test_initial_ages_are_between_1_and_t_minus_1_and_differ():
    ages = [m.age for m in pool(pool=12).members]
    assert all(1 <= age <= 9 for age in ages) and len(set(ages)) > 3
    assert {m.age for m in pool(pool=12, pool_steps=2).members} == {1}


def test_papers_counter_keeps_a_mix_of_ages():
    p = simulate("reset")
    # Ages of the draws cycle through 0..T-1, all equally often.
    assert p.untrained_share == pytest.approx(1 / 10, abs=0.04)
    assert p.mean_age == pytest.approx(4.5, abs=0.6)
    assert all(m.age == m.counter < 10 for m in p.members)


def test_codes_counter_ends_with_untrained_networks():
    p = simulate("stuck")
    assert p.untrained_share > 0.88  # all but the first few draws of each network
    assert all(m.age == 0 and m.counter == 10 for m in p.members)


def test_a_replaced_network_is_new():
    p = pool(pool=1)
    old = p.members[0]
    while p.members[0] is old:
        p.advance(p.draw(), X, Y)
    assert old.age == 10 and p.members[0].age == 0
    assert not torch.equal(old.network.head.weight, p.members[0].network.head.weight)


def test_a_drawn_network_is_in_eval_mode_and_training_moves_it():
    p = pool(pool=1)
    [member] = p.draw()
    assert not member.network.training
    before = member.network.head.weight.detach().clone()
    p.advance([member], X, Y + 1)
    assert not torch.equal(before, member.network.head.weight)


def test_all_networks_are_drawn():
    p = pool(pool=5)
    assert {id(p.draw()[0]) for _ in range(100)} == {id(m) for m in p.members}


def test_same_generator_same_pool():
    a, b, c = pool(1), pool(1), pool(2)
    assert [m.age for m in a.members] == [m.age for m in b.members] != [m.age for m in c.members]
    assert torch.equal(a.members[0].network.head.weight, b.members[0].network.head.weight)


def test_networks_are_trained_on_the_starting_pairs_when_they_are_first_drawn():
    p, g = pool(pool=5), torch.Generator().manual_seed(0)
    assert all(m.due == m.age for m in p.members)
    while any(m.due for m in p.members):
        p.draw()
    assert p.first_pairs is None
    for member in p.members:
        seed, steps = int(torch.randint(0, 2**62, (), generator=g)), int(torch.randint(1, 10, (), generator=g))
        network = seeded(make, seed).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(X), Y).backward()
            optimizer.step()
        theirs = member.network.state_dict()
        assert member.age == steps
        assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())


def test_a_short_run_trains_few_networks_and_a_stored_pool_goes_on():
    a, b = pool(pool=8, networks=2), pool(pool=8, networks=2)
    for _ in range(2):
        a.advance(a.draw(), X + 1, Y)
        b.advance(b.draw(), X + 1, Y)
    assert sum(m.due > 0 for m in a.members) >= 4
    stored, generator = a.state_dict(), a.generator.get_state()
    c = pool(seed=5, pool=8, networks=2)
    c.load_state_dict(stored)
    c.generator.set_state(generator)
    for _ in range(20):
        b.advance(b.draw(), X + 1, Y)
        c.advance(c.draw(), X + 1, Y)
    for one, other in zip(b.members, c.members, strict=True):
        assert one.age == other.age and one.due == other.due
        theirs = other.network.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in one.network.state_dict().items())


def test_an_interrupted_draw_leaves_no_trace():
    config = DistillConfig(pool=3, pool_steps=100)
    answers = [False, True, False, False, True]

    def interrupted():
        return bool(answers) and answers.pop()

    p = Pool(Job(DATA, Y, make, config), torch.Generator().manual_seed(0))
    p.fill(X, Y, interrupted=interrupted)
    whole = Pool(Job(DATA, Y, make, config), torch.Generator().manual_seed(0))
    whole.fill(X, Y)
    for _ in range(2):
        with pytest.raises(Interrupted):
            p.draw()
    for _ in range(12):
        p.advance(p.draw(), X, Y)
        whole.advance(whole.draw(), X, Y)
    for one, other in zip(p.members, whole.members, strict=True):
        theirs = other.network.state_dict()
        assert one.age == other.age
        assert all(torch.equal(value, theirs[name]) for name, value in one.network.state_dict().items())


def test_progress_moves_within_a_network(monkeypatch):
    class Moving(list):
        moves, __call__ = True, list.append

    report, now = Moving(), iter(range(10_000))
    monkeypatch.setattr("ssdd.config.errors.time.monotonic", lambda: next(now))
    p = Pool(Job(DATA, Y, make, DistillConfig(pool=2, pool_steps=30)), torch.Generator().manual_seed(0))
    p.fill(X, Y, report)
    p.draw()
    steps = [event["step"] for event in report if event["event"] == "progress"]
    due = max(m.age for m in p.members if not m.due)
    assert steps == [(i + 1) / due for i in range(due)]
