"""Selections: different members of the set, each as its plain formula chooses them."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ssdd
from ssdd.config import SELECTION_NAMES, DistillConfig, InputError
from ssdd.distillation import Job, choose_images
from ssdd.models import seeded
from ssdd.selection import SELECTIONS, Candidates, choose, high_loss, kmeans_medoids, random_subset


@pytest.fixture(scope="module")
def known(few, make):
    """known(representations, targets): what a selection is given; the targets are the representations if not given."""
    x = few.preprocessing(few.x_train)

    def candidates(representations, targets=None):
        targets = representations if targets is None else targets

        def network(seed):
            return seeded(lambda: make(targets.shape[1]), seed)

        return Candidates(representations, targets, few.y_train, lambda rows: (x[rows], targets[rows]), network)

    return candidates


def test_random_subset():
    a, b, c = (random_subset(50, 20, s) for s in (0, 0, 1))
    assert len(set(a.tolist())) == 20 and int(a.max()) < 50 and torch.equal(a, b) and not torch.equal(a, c)
    assert sorted(random_subset(5, 5, 0).tolist()) == [0, 1, 2, 3, 4]


def test_medoids_find_separated_clusters():
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    points = centres.repeat_interleave(25, 0) + 0.3 * torch.randn(100, 2, generator=g)
    rows = kmeans_medoids(points, 4, seed=0)
    assert sorted((rows // 25).tolist()) == [0, 1, 2, 3]
    for row in rows.tolist():  # the medoid is the member nearest to its cluster's mean
        members = points[row // 25 * 25 : row // 25 * 25 + 25]
        assert int((members - members.mean(0)).norm(dim=1).argmin()) == row % 25


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_duplicates_do_not_fill_two_places():
    assert len(set(kmeans_medoids(torch.zeros(10, 2), 3, seed=0).tolist())) == 3


def test_medoids_cover_better_than_a_random_choice(representations):
    r = representations.train

    def spread(rows):
        return float(torch.cdist(r, r[rows]).min(1).values.square().mean())

    assert spread(kmeans_medoids(r, 20, 0)) < 0.9 * min(spread(random_subset(len(r), 20, s)) for s in range(5))


@pytest.mark.parametrize("count", [0, 51])
def test_counts_that_cannot_be(count):
    with pytest.raises(InputError, match="between 1 and 50"):
        random_subset(50, count, 0)
    with pytest.raises(InputError, match="between 1 and 50"):
        kmeans_medoids(torch.zeros(50, 2), count, 0)


def radius(points, rows):
    """The largest distance of a point to the nearest one of ``rows``."""
    return float(torch.cdist(points, points[rows]).min(1).values.max())


def test_k_centre_takes_the_farthest_point_each_time(known):
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    rows = choose("k-centre", known(points), 6, seed=2).tolist()
    for i in range(1, 6):
        distance = [min(float((p - points[j]).norm()) for j in rows[:i]) for p in points]
        assert rows[i] == max(range(40), key=lambda k, d=distance: d[k])
    assert len({choose("k-centre", known(points), 1, s).item() for s in range(20)}) > 5  # the seed draws the first
    chance = min(radius(points, random_subset(40, 6, s)) for s in range(5))
    assert radius(points, rows) < chance


def test_herding_brings_the_mean_nearest_each_time(known):
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double()
    rows = choose("herding", known(points), 6, seed=2).tolist()
    for i in range(6):
        rest = [k for k in range(40) if k not in rows[:i]]
        missed = {k: float((points[[*rows[:i], k]].mean(0) - points.mean(0)).norm()) for k in rest}
        assert rows[i] == min(rest, key=lambda k, m=missed: m[k])


@pytest.mark.parametrize("kind", ["teacher", "labels"])
def test_high_loss_takes_what_briefly_trained_students_predict_worst(known, few, make, representations, kind):
    targets = representations.train if kind == "teacher" else few.one_hot()
    candidates = known(representations.train, targets)
    rows = choose("high-loss", candidates, 12, seed=3)

    g, total, x = torch.Generator().manual_seed(3), 0, few.preprocessing(few.x_train)
    for _ in range(high_loss.STUDENTS):  # one epoch each, written out
        start = int(torch.randint(0, 2**62, (), generator=g))
        network = seeded(lambda: make(targets.shape[1]), start).train()
        sgd = torch.optim.SGD(network.parameters(), high_loss.LR, high_loss.MOMENTUM)
        order = torch.randperm(400, generator=g)
        for batch in (order[:256], order[256:]):
            sgd.zero_grad()
            F.mse_loss(network(x[batch]), targets[batch]).backward()
            sgd.step()
        total = total + (network.eval()(x) - targets).detach().square().mean(1)
    expected = total.argsort(descending=True)[:12]
    assert set(rows.tolist()) == set(expected.tolist())
    assert not torch.equal(rows, choose("high-loss", candidates, 12, seed=4))


def test_a_job_hands_a_selection_its_images_targets_labels_and_network(known, few, make, representations, monkeypatch):
    targets, seen = few.one_hot(), []
    monkeypatch.setitem(SELECTIONS, "random", lambda *arguments: seen.append(arguments))
    job = Job(few, representations.train, lambda: make(targets.shape[1]), DistillConfig(), seed=5)
    choose_images("random", job, targets, 3)
    (candidates, count, seed), expected = seen[0], known(representations.train, targets)
    assert (count, seed) == (3, 5) and torch.equal(candidates.representations, expected.representations)
    assert torch.equal(candidates.targets, targets) and torch.equal(candidates.labels, few.y_train)
    for part, whole in zip(candidates.batch(torch.tensor([7, 2])), expected.batch(torch.tensor([7, 2])), strict=True):
        torch.testing.assert_close(part, whole)
    weights = [n(9).state_dict() for n in (candidates.network, expected.network)]
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, weights), strict=True))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("name", SELECTION_NAMES)
@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_selection_gives_different_rows_and_a_seed_fixes_them(known, few, representations, name, count):
    twice = torch.arange(400) // 2  # every representation stands there twice
    for targets in (None, few.one_hot()):
        candidates = known(representations.train[twice], targets)
        rows = choose(name, candidates, count, 7)
        assert rows.dtype == torch.int64 and len(set(rows.tolist())) == count
        assert torch.equal(rows, choose(name, candidates, count, 7))


@pytest.mark.parametrize("name", SELECTION_NAMES)
def test_every_selection_refuses_more_images_than_there_are(known, representations, name):
    for count in (0, 401):
        with pytest.raises(InputError, match="images: expected between 1 and 400"):
            choose(name, known(representations.train), count, 0)


def test_every_file_of_the_room_is_a_selection_by_its_name(known, representations):
    assert tuple(SELECTIONS) == SELECTION_NAMES == ("herding", "high-loss", "k-centre", "k-means", "random")
    r = representations.train
    assert torch.equal(choose("random", known(r), 5, 3), random_subset(len(r), 5, 3))
    assert torch.equal(choose("k-means", known(r), 5, 3), kmeans_medoids(r, 5, 3))
    with pytest.raises(InputError, match="selection: expected one of herding, .*, random, got 'best'"):
        choose("best", known(r), 5, 3)
    with pytest.raises(InputError, match=r"DistillConfig\.initial: expected one of 'herding', .* got 'best'"):
        DistillConfig(initial="best")


FIRST = '''"""The first images."""

import torch


def select(candidates, count, seed):
    return torch.arange(count)
'''
STUDY = """
import contextlib
import io
import sys
import ssdd
from ssdd.cli import run
from ssdd.selection import Candidates, choose
from ssdd.studies import read_plan
import torch

plan = read_plan(sys.argv[1])
assert plan.rows[0].selected and plan.rows[0].relevant["distill"] == {"images": 26}
points = torch.zeros(9, 2)
print(choose(plan.rows[0].source, Candidates(points, points, None, None, None), 3, 0).tolist())
assert ssdd.DistillConfig(initial="the-first").initial == "the-first"
with contextlib.redirect_stdout(io.StringIO()) as printed:
    run(["settings", "digits", "--distill.initial", "the-first"])
assert 'initial = "the-first"' in printed.getvalue()
"""


def test_a_selection_of_ones_own_is_one_file(fresh, tmp_path):
    shutil.copytree(Path(ssdd.__file__).parent, tmp_path / "ssdd", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ssdd" / "selection" / "the_first.py").write_text(FIRST)
    (tmp_path / "study.toml").write_text('preset = "digits"\n[[row]]\nname = "the first"\nfrom = "the-first"\n')
    here = f"import sys\nassert 'ssdd' not in sys.modules\nsys.path.insert(0, {str(tmp_path)!r})\n"
    done = fresh(here + STUDY, tmp_path / "study.toml")
    assert done.returncode == 0 and done.stdout == "[0, 1, 2]\n", done.stderr
