"""Selections: different members of the set, and medoids that cover it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssdd
from ssdd.config import InputError
from ssdd.selection import SELECTIONS, choose, kmeans_medoids, random_subset


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


def test_every_file_of_the_room_is_a_selection_by_its_name(representations):
    assert set(SELECTIONS) == {"random", "k-means"}
    r = representations.train
    assert torch.equal(choose("random", r, 5, 3), random_subset(len(r), 5, 3))
    assert torch.equal(choose("k-means", r, 5, 3), kmeans_medoids(r, 5, 3))
    with pytest.raises(InputError, match="selection: expected one of k-means, random, got 'herding'"):
        choose("herding", r, 5, 3)


FIRST = '''"""The first images."""

import torch

NAME = "first"


def select(representations, count, seed):
    return torch.arange(count)
'''
STUDY = """
import sys
from ssdd.selection import choose
from ssdd.studies import read_plan
import torch

plan = read_plan(sys.argv[1])
assert plan.rows[0].selected and plan.rows[0].relevant["distill"] == {"images": 26}
print(choose(plan.rows[0].source, torch.zeros(9, 2), 3, 0).tolist())
"""


def test_a_selection_of_ones_own_is_one_file(tmp_path):
    shutil.copytree(Path(ssdd.__file__).parent, tmp_path / "ssdd", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ssdd" / "selection" / "first.py").write_text(FIRST)
    (tmp_path / "study.toml").write_text('preset = "digits"\n[[row]]\nname = "the first images"\nfrom = "first"\n')
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", STUDY, tmp_path / "study.toml"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[0, 1, 2]\n", done.stderr
